"""Prints where the weights of a name are, asked of the hub that the environment names."""

import sys

from tuwen.nn.published.towers import located

print(located(sys.argv[1]))
