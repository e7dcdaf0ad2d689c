"""From files as they are to a corpus: read, repair, filter, de-duplicate, mix, shard, report."""
