"""A small generative model: more labelled images of the kind that there are few of."""
