import torch
from hypothesis import settings

# The same examples in each run, and no deadline: a busy machine must not turn a test red.
settings.register_profile("toolagent", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("toolagent")

torch.set_num_threads(1)  # the tensors are small; more threads only wait for each other, above all on a busy machine
