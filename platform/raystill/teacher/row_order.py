"""In which order rows are done.

What can be known before a completion exists is its prompt and its own limit, so the order is made of these:

1. Within a partition, rows are sorted by prompt token ids, then by sample: prompts with a common prefix, and
   the samples of one prompt (which share a partition, see `request_key`), stand side by side, so that an
   engine with prefix caching computes the prefix once.
2. The last rows of a job, as many as all its engines hold at once, are done longest first (LPT: Graham, SIAM
   J. Appl. Math. 17, 1969): a row that starts last should be one that ends soon. "Longest" is prompt tokens
   plus the longest completion that the row allows; without the completion's true length that is exact only
   for `score`, whose completions are known.

`Progress.tail_fraction` measures what is left: the share of the time in which fewer rows were left than the
engines could hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from raystill.store.codec import list_arrays
from raystill.teacher.shards import Shard


def prefix_order(table: pa.Table) -> pa.Table:
    """The rows sorted by `prompt_token_ids`, then by `sample_index` where there is one."""
    prompts = [ids.astype(">i4").tobytes() for ids in list_arrays(table, "prompt_token_ids")]
    has_samples = "sample_index" in table.column_names
    samples = table.column("sample_index").to_pylist() if has_samples else [0] * table.num_rows
    order = sorted(range(table.num_rows), key=lambda index: (prompts[index], samples[index]))
    return table.take(pa.array(order, pa.int64()))


def mark_tail(shards: Sequence[Shard], capacity: int) -> list[Shard]:
    """The shards in order, the last of them marked that hold up to `capacity` rows together."""
    marked = list(shards)
    rows = 0
    for index in range(len(marked) - 1, -1, -1):
        rows += marked[index].num_rows
        if rows > capacity and index < len(marked) - 1:
            break
        marked[index] = replace(marked[index], in_tail=True)
    return marked
