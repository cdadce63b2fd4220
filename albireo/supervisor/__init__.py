"""The supervisor: owns the listening socket, the shared memory and the sockets' directory; starts every process,
watches them, puts others in the place of those that die, stops them.

It imports neither torch nor starlette, so it starts at once and never dies of theirs.
"""
