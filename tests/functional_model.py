"""A model in one expression, for tests."""

from torch import nn


class Model(nn.Module):
    """A model whose forward pass is given as a function of the module and its inputs."""

    def __init__(self, forward, **members):
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
        self.function = forward

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)
