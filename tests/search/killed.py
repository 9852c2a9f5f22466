"""Builds an index in a process that is killed, over and over, and then to its end. Run as a program.

killed.py RUN PICTURES OUT SEED KILLS: imports once, then forks for every attempt; prints one JSON object a line about
each attempt: what it reported as done before it died.
"""

import json
import os
import random
import signal
import sys
import time

from tuwen.search import ingest
from tuwen.search.build import build_index


def attempt(run: str, pictures: str, out: str, report: int) -> None:
    """One build that tells of every commit, slowed so that a kill can fall anywhere."""
    ingest.SHORTEST, ingest.WINDOW = 0.0, 4
    plain = ingest.Ingest.run

    def run_and_tell(self, source):
        for said in plain(self, (time.sleep(0.003) or picture for picture in source)):
            done = [one.id for one in said if one.state == "added"]
            os.write(report, (json.dumps(done) + "\n").encode())
            yield said

    ingest.Ingest.run = run_and_tell  # type: ignore[method-assign]
    build_index(run, pictures, out, batch_size=4)
    os.write(report, b'"finished"\n')


def main(run: str, pictures: str, out: str, seed: str, kills: str) -> None:
    draw = random.Random(int(seed))
    for number in range(int(kills) + 1):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            attempt(run, pictures, out, write)
            os._exit(0)
        os.close(write)
        if number < int(kills):
            time.sleep(draw.uniform(0.02, 1.2))
            os.kill(child, signal.SIGKILL)
        with open(read) as file:
            told = [line for line in file.read().splitlines() if line.endswith(("]", '"'))]
        os.waitpid(child, 0)
        print(json.dumps([json.loads(line) for line in told]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
