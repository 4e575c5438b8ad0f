"""What travels to a worker: shared arrays once, everything else with the task, and the same network at the end."""

import numpy as np

from lipray.model.network import Dense, Input, Network, Node
from lipray.partition.subproblem import Settings, Subproblem
from lipray.run.executor import Task
from lipray.run.parcels import BATCH_LENGTH, batches, pack, share, unpack


def network(weights, keys):
    nodes = [Node("x", Input(), (), (3,))]
    for key in keys:
        nodes.append(Node(key, Dense(key, None), (len(nodes) - 1,), (3,)))
    return Network(tuple(nodes), weights)


def task(name, net, seconds=0.01, group="block1"):
    return Task(name, name, group, Subproblem(name, net, "product", Settings()), 1000, seconds)


def test_networks_survive_the_trip():
    block = {"a": np.eye(3), "b": np.ones((3, 3)), "unused": np.zeros((1000, 1000))}
    own = {"a": block["a"], "b": 2 * np.ones((3, 3))}
    tasks = [task("t0", network(block, "ab")), task("t1", network(own, "ab")), task("t2", network(block, "b"))]
    shared = share(tasks)
    assert set(shared) == {"a", "b"}
    parcels = [pack(item, shared) for item in tasks]
    assert [set(parcel.task.work.network.weights) for parcel in parcels] == [set(), {"b"}, set()]
    for item, parcel in zip(tasks, parcels, strict=True):
        back = unpack(parcel, shared)
        assert back.work.network.content_hash() == item.work.network.content_hash()
        assert back.work.key() == item.work.key()
        assert back.key == item.key


def test_short_tasks_travel_together_and_long_ones_alone():
    net = network({"a": np.eye(3)}, "a")
    tasks = [task(f"s{i}", net, 0.001) for i in range(1000)] + [task("long", net, 5.0), task("o", net, 0.001, "block2")]
    made = batches(tasks, cpus=2)
    assert sorted(item.key for batch in made for item in batch) == sorted(item.key for item in tasks)
    assert ("long",) in [tuple(item.key for item in batch) for batch in made]
    assert all(len({item.group for item in batch}) == 1 for batch in made)
    assert max(map(len, made)) == BATCH_LENGTH
    few = batches([task(f"s{i}", net, 0.001) for i in range(6)], cpus=3)
    assert len(few) == 6
