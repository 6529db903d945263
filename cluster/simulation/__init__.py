"""A whole cluster in one thread, in virtual time, from one seed: the shipped code under faults.

What runs is the shipped core, replica, codec and memory chain. Replaced are the sockets
(`network`), the clocks and the processor's moods (`machine`), the disk's timing (`machine`, over
`storage.memory`), and the process that writes the index (`index`). `world` puts them together,
`nemesis` breaks them, `clients` use them, `watch` looks at everything after every event, and
`campaign` runs many seeds. The same seed gives the same run, to the last byte of its trace.
"""
