"""The slice store: the Parquet dataset of stacks that `ingest` writes and everything else reads.

    <store>/store.json                    contract version, preprocessing and its fingerprint
    <store>/snapshots/<n>.json            the live commits, whole, and the totals: readers take the highest
    <store>/commits/<name>.json           one shard's files, or one cohort's sessions: written last, whole or not at all
    <store>/stacks/part-<hash>.parquet    one row per stack
    <store>/masks/part-<hash>.parquet     label stacks of each stack's centre slice, where there are segmentations
    <store>/scans/part-<hash>.parquet     one row per scan: source, geometry, window, registration, QC figures
    <store>/sessions/part-<hash>.parquet  one row per session: the labels that the cohort carried
    <store>/rejected/part-<hash>.parquet  one row per scan left out, with the reason
    <store>/label_maps/part-<hash>.parquet  one row per label map or brain mask: source, how it was chosen, its use

A part is named by its own content, a commit by what its content follows from; what is whole is never replaced by
anything else. So two submitters at once cannot harm each other, a killed run leaves whole files or none, and the same
input gives the same bytes: no time, host or run's name stands anywhere in a store.

`schemas` are the columns, `layout` the names of files and what the JSON ones hold. `writer` makes parts, `shards` one
shard of them with its commit. `reader` is the way in for everybody else, `pages` what it reads pixels by, `where`
filters, `summary` says what is there, `check` whether it is whole. `prune` removes what nobody needs, and `turns` says
why no ingest minds. `layout`, `prune` and `turns` alone are light (no pyarrow).
"""
