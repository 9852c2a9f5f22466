"""A process that reads one LMDB for another: `python lmdb_child.py FOLDER`. A damaged one may end it, and it alone.

LMDB follows the page numbers that stand in its file, so a stranger's file can make a process read where nothing is
(SIGBUS, SIGSEGV). Asked on standard input, a line a question: "get KEY" (KEY in hexadecimal) gives one value, "items"
every key with its value, and a missing one at the end. Answered on standard output: the length as int64, then the
bytes; -1: missing, -2: what is wrong follows as a text. Imports nothing of tuwen, so that it starts in no time.
"""

import os
import struct
import sys

LENGTH = struct.Struct("<q")
MISSING, WRONG = -1, -2


def main(folder: str) -> None:
    import lmdb  # an extra of tuwen, whose modules are all imported where formats are looked up

    out = sys.stdout.buffer

    def tell(value: bytes | None) -> None:
        out.write(LENGTH.pack(MISSING) if value is None else LENGTH.pack(len(value)) + value)

    try:
        environment = lmdb.open(folder, readonly=True, lock=False, readahead=False)
        pages, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
        there = os.path.getsize(os.path.join(folder, "data.mdb"))
        if there < pages * size:
            raise ValueError(f"cut short, {there:,} of {pages * size:,} bytes; copy it again")
        for line in sys.stdin.buffer:
            verb, _, key = line.decode().strip().partition(" ")
            with environment.begin() as transaction:
                if verb == "get":
                    tell(transaction.get(bytes.fromhex(key)))
                else:
                    for name, value in transaction.cursor():
                        tell(name)
                        tell(value)
                    tell(None)
            out.flush()
    except Exception as error:
        text = str(error).encode()[:1000]
        out.write(LENGTH.pack(WRONG) + LENGTH.pack(len(text)) + text)
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1])
