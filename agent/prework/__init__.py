"""What the target's file system needs before a restore: image layers, the writable layer, volumes.

tar        the stream and its format, both ways; knows no file system
ids        whose a file is on the other host: user namespaces, ACLs, file capabilities
confined   a directory tree that can't be left: no symlink is ever followed
tree       what is in a tree, and what has changed since the last look
content    the bytes of one file, whatever happens to it meanwhile
pack       a tree, or what changed in it, into a stream
unpack     a stream into a mounted root or a volume
pipe       a thread and the event loop, side by side
stream     packing and unpacking as asyncio byte streams
layers     which image layers the other host lacks, and a `docker save` stream without the rest
"""
