"""Attention masks that stay finite in 16 bits: half of the lowest number there is, in place of all of it.

Libraries mask with the lowest finite number of a dtype, which is added to the scores. In float16 that is -65504, and a
score of -16 or less beside it is -inf where a backend adds in float16. A row in which that happens to every score, as
in a row of padding, has no softmax: it is not a number, and as 0 times that is not a number either, it spoils valid
tokens in the next block. Half of the limit leaves room for any score, and its softmax is 0 all the same.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_SOFTMAX = (torch.ops.aten.softmax.int, torch.ops.aten._softmax.default)


def leave_room_for_scores(exported: ExportedProgram, dtype: torch.dtype) -> int:
    """Halve the numbers that mask scores and are the lowest of a dtype; return how many there were.

    Other uses of that number, such as a maximum over valid tokens, are left alone.

    Args:
        exported: the program; changed in place.
        dtype: whose lowest number it is.
    """
    lowest = torch.finfo(dtype).min
    count = 0
    for node in exported.graph.nodes:
        places = [place for place, value in enumerate(node.args) if isinstance(value, float) and value == lowest]
        if places and _masks_scores(node):
            node.args = tuple(value / 2 if place in places else value for place, value in enumerate(node.args))
            count += 1
    return count


def _masks_scores(fill: Node) -> bool:
    """Whether what a node fills reaches an attention's mask, or a softmax, before any other attention."""
    seen, waiting = set(), [fill]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if user.target is _ATTENTION:
                if node in (*user.args[3:4], user.kwargs.get("attn_mask")):
                    return True
            elif user.target in _SOFTMAX:
                return True
            elif user not in seen:
                seen.add(user)
                waiting.append(user)
    return False
