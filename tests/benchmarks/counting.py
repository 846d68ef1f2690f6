"""Peers of the language benchmark that need no model: they count, fail, or sleep."""

import os
import time

from benchmarks.language.peers import Generated, LanguagePeer, Session, Setting, Storage
from benchmarks.language.source import Ids, Shape, Source
from benchmarks.zoo import glassllm

SHAPE = Shape(4, 128, 512, 4, 2, 32, 1024)
TINY = Source("tiny", "nothing", glassllm.load, SHAPE)
STORED = {"int4": Storage(4.5, 8, 16, "f32", "made up")}


class Counts:
    """Continues a prompt by counting on; a prompt of n tokens takes n ms, a token 1 ms, and 13 end the process."""

    def generate(self, prompts: Ids, count: int) -> Generated:
        if prompts.shape[1] == 13:
            os._exit(3)
        rows = tuple(tuple(range(int(row[0]), int(row[0]) + count)) for row in prompts)
        return Generated(float(prompts.shape[1]), (1.0,) * (count - 1), rows)


class Sleeps(Counts):
    """Answers to short prompts alone."""

    def generate(self, prompts: Ids, count: int) -> Generated:
        time.sleep(0 if prompts.shape[1] < 9 else 60)
        return super().generate(prompts, count)


def counts(source: Source, kind: str, setting: Setting) -> Session:
    return Counts()


def broken(source: Source, kind: str, setting: Setting) -> Session:
    raise NotImplementedError("no such op")


def sleeps(source: Source, kind: str, setting: Setting) -> Session:
    return Sleeps()


COUNTS = LanguagePeer("counts", "numpy", STORED, counts, {"int8": "it counts in fours"})
BROKEN = LanguagePeer("broken", "numpy", STORED, broken)
SLEEPS = LanguagePeer("sleeps", "numpy", STORED, sleeps)
