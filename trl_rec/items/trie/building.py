"""Builds the arrays of a `TokenTrie` from token sequences, without a loop over items.

The token sequences are the paths of the trie. They are sorted and then processed column by column. The prefix of a
path consists of its tokens up to the current column, inclusive. In sorted order, a new node begins wherever the prefix
of a path differs from that of the previous path.

Legend: N paths, L tokens in the longest path, R new nodes at a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


LARGEST = torch.iinfo(torch.int32).max  # tokens, items and nodes are stored as int32
KEY_BITS = 62  # usable bits of an int64 sort key; the sign bit and one more bit remain unused


def as_matrix(sequences: Tensor | np.ndarray | Sequence[Sequence[int]]) -> Tensor:
    """Returns the paths as `(N, L)`, padded on the right with -1. Raises ValueError for invalid token ids."""
    # 1. Convert lists and arrays to a tensor.
    if isinstance(sequences, Tensor) or hasattr(sequences, "shape"):
        paths = as_integers(sequences, "sequences must be a 2-D array of token ids", ndim=2)
    elif not isinstance(sequences, Sequence):
        raise ValueError(f"sequences must be lists of token ids or a 2-D array, not {type(sequences).__name__}")
    else:
        message = "sequence {} must be a list of token ids".format
        rows = [as_integers(row, message(number), ndim=1) for number, row in enumerate(sequences)]
        pad = torch.nn.utils.rnn.pad_sequence
        paths = pad(rows, batch_first=True, padding_value=-1) if rows else torch.empty(0, 0)

    # 2. Check the token ids.
    if not paths.numel():
        raise ValueError("sequences is empty; give at least one sequence")
    if int(paths.max()) > LARGEST:
        raise ValueError(f"token id {int(paths.max())} is too large; token ids must not exceed {LARGEST}")
    below = (paths < -1).any(1)
    if bool(below.any()):
        row = int(below.nonzero()[0])
        raise ValueError(
            f"sequence {row} contains the id {int(paths[row].min())}; token ids must be at least 0, and the padding -1"
        )
    gaps = ((paths[:, :-1] < 0) & (paths[:, 1:] >= 0)).any(1)
    if bool(gaps.any()):
        raise ValueError(
            f"sequence {int(gaps.nonzero()[0])} has a negative id before its end; use -1 only as padding on the right"
        )
    is_empty = paths[:, 0] < 0
    if bool(is_empty.any()):
        raise ValueError(f"sequence {int(is_empty.nonzero()[0])} is empty; give every sequence at least one token")
    return paths[:, : int((paths >= 0).any(0).sum())]  # a column with nothing but padding would be an empty level


def as_integers(values: object, message: str, *, ndim: int) -> Tensor:
    """Converts lists or arrays to a tensor of 32-bit or 64-bit integers with `ndim` dimensions.

    Args:
        values: The values.
        message: Beginning of the error message. It states what the values must be.
        ndim: The number of dimensions.
    """
    # 1. Convert the values to a tensor. Torch refuses NumPy arrays in non-native byte order, so such arrays are first
    # converted to native byte order. Floats and booleans are refused rather than converted to integers.
    if isinstance(values, np.ndarray):
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{message}, not {type(values).__name__} ({error})") from error
    is_empty_list = not tensor.numel() and not hasattr(values, "shape")  # torch converts [] to a float tensor
    is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if tensor.ndim != ndim or not (is_integer or is_empty_list):
        raise ValueError(f"{message}, not {tensor.dtype} of shape {tuple(tensor.shape)}")
    if tensor.dtype in (torch.int32, torch.int64):
        return tensor

    # 2. Convert the other integer types. Unsigned 64-bit integers above the range of int64 become negative here, so
    # they are refused.
    integers = tensor.long()
    if tensor.dtype == torch.uint64 and bool((integers < 0).any()):
        raise ValueError(f"{message}, each at most {LARGEST}")
    return integers


def lexicographic_order(paths: Tensor, order: Tensor) -> Tensor:
    """Returns the row indices of `paths`, sorted by path, `(N,)`. Rows with equal paths stay in the given `order`."""
    # This is a radix sort: stable sorts from the last columns to the first. Each sort processes as many columns as fit
    # into its key. For semantic IDs, one sort is usually enough.
    lows = paths.amin(0).tolist()
    bits = [(high - low).bit_length() for high, low in zip(paths.amax(0).tolist(), lows, strict=True)]
    column = len(bits)
    while column:
        key = torch.zeros(len(paths), dtype=torch.int64)
        used = 0
        while column and used + bits[column - 1] <= KEY_BITS:
            column -= 1
            key |= (paths[:, column] - lows[column]).long() << used
            used += bits[column]
        order = order[torch.sort(key[order], stable=True).indices]
    return order


def number_nodes(paths: Tensor, order: Tensor) -> dict[str, Tensor]:
    """Returns the arrays of a `TokenTrie`, except `items`.

    Args:
        paths: Paths `(N, L)`.
        order: Row indices that sort the paths, `(N,)`.
    """
    num_rows, depth = paths.shape

    # For each path, in sorted order: whether its prefix differs from that of the previous path, and the node that its
    # prefix leads to (-1 after the end of the path).
    differs = torch.zeros(num_rows, dtype=torch.bool)
    differs[0] = True
    node_of_row = torch.zeros(num_rows, dtype=torch.int32)

    # For each level, the arrays of its nodes. Level 0 is the root.
    starts = [torch.zeros(1, dtype=torch.int32)]
    ends = [torch.full((1,), num_rows, dtype=torch.int32)]
    tokens = []
    widths = []
    depth_offsets = [0, 1]
    num_nodes = 1

    for column in range(depth):
        # 1. Find where each node of this level begins and ends among the sorted paths. Paths that have already ended
        # have no node at this level.
        token = paths[order, column]
        differs[1:] |= token[1:] != token[:-1]
        start = differs.nonzero().squeeze(1)
        end = torch.cat([start[1:], torch.tensor([num_rows])])
        alive = token >= 0
        is_new = alive[start]
        start = start[is_new]  # (R,)
        end = end[is_new]

        # 2. Count the children of each node of the previous level. `node_of_row` still contains the nodes of that
        # level.
        first = depth_offsets[-2]
        widths.append(torch.bincount(node_of_row[start] - first, minlength=num_nodes - first).to(torch.int32))
        _check_prefixes(alive, node_of_row, widths[-1], first, order)

        # 3. Number the new nodes.
        node_of_row = torch.where(alive, num_nodes - 1 + (differs & alive).cumsum(0), -1).to(torch.int32)
        tokens.append(token[start].to(torch.int32))
        starts.append(start.to(torch.int32))
        ends.append(end.to(torch.int32))
        num_nodes += len(start)
        depth_offsets.append(num_nodes)

    widths.append(torch.zeros(num_nodes - depth_offsets[-2], dtype=torch.int32))  # the last level has no children
    return {
        "row_offsets": torch.cat([torch.zeros(1, dtype=torch.int32), torch.cat(widths).cumsum(0, dtype=torch.int32)]),
        "child_tokens": torch.cat(tokens),
        "item_starts": torch.cat(starts),
        "item_ends": torch.cat(ends),
        "depth_offsets": torch.tensor(depth_offsets),
    }


def _check_prefixes(alive: Tensor, node_of_row: Tensor, widths: Tensor, first: int, order: Tensor) -> None:
    """Raises ValueError if a path ends at a node with children, because decoding stops only at leaves.

    Each call checks one level of the trie.

    Args:
        alive: Whether each path continues after the level, `(N,)`, in sorted order.
        node_of_row: The node of each path at the level, `(N,)`; -1 if the path ended at an earlier level.
        widths: The number of children of each node of the level.
        first: The first node of the level.
        order: Row indices that sort the paths, `(N,)`.
    """
    ended = (~alive & (node_of_row >= 0)).nonzero().squeeze(1)
    if not len(ended):
        return
    clash = widths[node_of_row[ended] - first] > 0
    if bool(clash.any()):
        row = int(order[ended[clash][0]])
        raise ValueError(
            f"sequence {row} is a prefix of another sequence; end every sequence with a terminator such as EOS"
        )


def find_problem(arrays: dict[str, Tensor]) -> str | None:
    """Returns a description of the first error found in the arrays of a `TokenTrie`, or None if no error was found.

    If the function returns None, all offsets point to existing nodes and items. The function does not check that items
    are distinct, or that tokens and paths are sorted.
    """
    # 1. Check that each array is a list of integers.
    wrong = [
        name for name, array in arrays.items() if array.ndim != 1 or array.dtype not in (torch.int32, torch.int64)
    ]
    if wrong:
        return f"{wrong[0]} is not a list of integers"

    # 2. Check that the lengths are consistent.
    num_nodes = len(arrays["item_starts"])
    num_items = len(arrays["items"])
    lengths = {"item_ends": num_nodes, "row_offsets": num_nodes + 1, "child_tokens": num_nodes - 1}
    wrong = [name for name, length in lengths.items() if len(arrays[name]) != length]
    if num_nodes < 2 or not num_items or len(arrays["depth_offsets"]) < 3 or wrong:
        return "the lengths of its arrays are inconsistent"

    # 3. Check that offsets ascend, that the children of a node come after it, that a node's items exist, and that no
    # token or item is negative.
    rows = arrays["row_offsets"]
    depths = arrays["depth_offsets"]
    starts = arrays["item_starts"]
    ends = arrays["item_ends"]
    parents = (rows.diff() > 0).nonzero().squeeze(1)
    is_right = (
        (rows[0] == 0) & (rows[-1] == num_nodes - 1) & (rows.diff() >= 0).all() & (rows[parents] >= parents).all(),
        (depths[:2] == torch.tensor([0, 1])).all() & (depths[-1] == num_nodes) & (depths.diff() > 0).all(),
        (starts >= 0).all() & (starts < ends).all() & (ends <= num_items).all(),
        (arrays["child_tokens"] >= 0).all() & (arrays["items"] >= 0).all(),
    )
    return None if all(map(bool, is_right)) else "its offsets are inconsistent"
