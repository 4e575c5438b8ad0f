"""What travels to a worker: shared arrays once, everything else with the task, and the same network at the end."""

import numpy as np

from lipray.certify.certificate import Certificate, Status
from lipray.model.network import Dense, Input, Network, Node
from lipray.partition.subproblem import Settings, Subproblem
from lipray.run.executor import Task, owned
from lipray.run.ray.parcels import BATCH_LENGTH, HEAVY, KNOWN_NETWORKS, batches, carriers, pack, share, unpack
from lipray.verify.prove import Proof
from lipray.verify.torus.bundle import Bundle, perform
from tests.maps import Maps


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


def test_light_groups_travel_together_and_heavy_ones_apart():
    light = [task(f"l{i}", network({f"w{i}": np.full((8, 8), i)}, [f"w{i}"]), 0.001, f"block{i}") for i in range(1000)]
    heavy = [task("h", network({"h": np.zeros((100, 100))}, "h"), 0.001, "heavy")]
    long = [task("long", network({"x": np.zeros((2, 2))}, "x"), 2.0, "long")]
    tasks = [*light[:500], *heavy, *long, *light[500:]]
    carried = carriers(tasks)
    assert (carried["heavy"], carried["long"]) == ("heavy", "long")
    together = {carried[item.group] for item in light}
    assert len(together) < 20
    made = batches(tasks, 2, carried)
    assert sorted(item.key for batch in made for item in batch) == sorted(item.key for item in tasks)
    assert len(made) < 100
    for carrier in together:
        members = [item for item in light if carried[item.group] == carrier]
        shared = share(members)
        assert sum(array.nbytes for array in shared.values()) <= HEAVY
        for item in members:
            assert unpack(pack(item, shared), shared).work.network.content_hash() == item.work.network.content_hash()


def test_what_has_come_pins_no_message():
    whole = np.arange(1000.0)
    proof = Proof("dense", (whole[:3], whole[5:7]), (("a", 3), ("b", 2)))
    sent = Certificate("k", "ellipsoid", 2.0, Status.CONVERGED, proof, whole[:4].reshape(2, 2))
    kept = owned(sent)
    assert all(array.flags.owndata and array.base is None for array in (*kept.proof.multipliers, kept.gram))
    assert [array.tolist() for array in kept.proof.multipliers] == [[0.0, 1.0, 2.0], [5.0, 6.0]]
    assert kept.gram.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert (kept.key, kept.bound, kept.proof.layers) == (sent.key, sent.bound, proof.layers)
    assert owned(kept) is kept


def test_light_groups_with_arrays_of_one_name_keep_their_own():
    tasks = [task(f"t{i}", network({"w": np.full((2, 2), float(i))}, "w"), 0.001, f"block{i}") for i in range(3)]
    assert set(carriers(tasks).values()) == {"block0"}
    shared = share(tasks)
    for item in tasks:
        assert unpack(pack(item, shared), shared).work.network.content_hash() == item.work.network.content_hash()


def test_a_network_with_a_token_is_put_together_once():
    net = network({"a": np.eye(3), "b": np.ones((3, 3))}, "ab")
    tasks = [task(f"t{i}", net) for i in range(3)]
    shared = share(tasks)
    known = {}
    first, second = (unpack(pack(item, shared, "one"), shared, known) for item in tasks[:2])
    assert first.work.network is second.work.network
    assert first.work.network.content_hash() == net.content_hash()
    assert (first.key, second.key) == ("t0", "t1")
    # Without a token, or without a memory, every trip stands alone.
    assert unpack(pack(tasks[2], shared), shared, known).work.network is not first.work.network
    assert unpack(pack(tasks[2], shared, "one"), shared).work.network is not first.work.network


def test_only_a_few_networks_are_remembered():
    known = {}
    nets = [network({"a": np.eye(3) * i}, "a") for i in range(5)]
    for i, net in enumerate(nets):
        item = task(f"t{i}", net)
        back = unpack(pack(item, share([item]), str(i)), share([item]), known)
        assert np.array_equal(back.work.network.weights["a"], net.weights["a"])
    assert list(known) == [str(i) for i in range(5)][-KNOWN_NETWORKS:]


def test_bundles_of_frequencies_travel_like_any_work():
    maps = Maps(1, 6, 6)
    maps.conv(2, padding=1)
    maps.act()
    net = maps.network()
    bundle = Bundle(net, 2, False, (((0, 0), 1),), (np.full(2, 0.01),), proof=False)
    item = Task("b", "b", "block1", bundle, 1, 1.0)
    shared = share([item])
    parcel = pack(item, shared, "token")
    assert not parcel.task.work.network.weights
    back = unpack(parcel, shared, {})
    assert perform(back.work).top == perform(bundle).top
    assert back.device == "cpu"
