"""The archive: one checkpoint as one streamed tar, in the layout that Podman, CRI-O and checkpointctl share.

layout     the members by name, and our own manifest
writer     members in, tar bytes out; hashes last
reader     tar bytes in, members out; trusts nothing
pipeline   compression, encryption and the file or pipe below, both ways
crypt      encryption at rest with a key file

    migration/manifest.json     ours, first: what a restore has to know before anything else comes
    config.dump  spec.dump      who it is; the OCI runtime's configuration of it
    network.status bind.mounts  where it was attached; what was mounted from the host
    layers/N                    the image as `docker save` gives it, in pieces, if it was wanted
    ctr.log  migration/log/N    the log so far: json-file's current file; all other files
    migration/init              the program of `docker run --init`
    volumes/NAME.tar            a volume
    rootfs-diff.tar             the writable layer
    deleted.files               what the writable layer hides of the image
    migration/printed           what was printed since the log files
    checkpoint/                 CRIU's images
    stats-dump  dump.log        CRIU's statistics and log
    migration/taken.json        how many tasks, how long they stood still
    migration/hashes.json       the hash of every member before it; without it an archive was cut off

Side files lie below migration/: readers take whatever begins with `checkpoint` or `rootfs-diff.tar`, or has
`config.dump` anywhere in its name, for what those names usually mean.
"""
