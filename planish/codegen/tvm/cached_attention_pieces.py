"""How attention over caches for one token is split: heads of keys are dealt, or pieces of them merged after a barrier.

The keys that all rows and heads see are one line, and every task takes an even part of it: of whole heads where the
largest part is then hardly longer, else of granules (flash-decoding, arXiv 2311.01282). Then a task leaves the sums of
at most two heads unfinished: of one that an earlier task began, and of one that it begins and a later task goes on
with. The task that begins a head merges its parts.
"""

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_plan import AttentionPlan
from planish.codegen.tvm.cached_attention_blocks import CachedBlocks
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.tiles import ceil_div, index, quotient
from planish.codegen.tvm.vector_math import both, fast_maximum, keep, power_of_two, splat
from planish.compiler.types import DType

GRANULE = 64  # keys that are visited at a time: their values stay in level one cache until all queries have read them
STATES = 3  # of sums: of a head that another task began, of one that this task began, and of one that it has alone
_CONTINUED, _BEGUN, _WHOLE = range(STATES)
_GRANULE_BITS, _HEAD_BITS = GRANULE.bit_length() - 1, 40  # of the number of keys in a unit that is dealt
_UNEVEN = 1  # granules that take no longer than a barrier and a merge


def lanes_of_group(plan: AttentionPlan) -> int:
    """The lanes that hold the queries of a head of keys: the next power of two."""
    return 1 << (plan.group - 1).bit_length()


def state_floats(plan: AttentionPlan) -> int:
    """Elements of one state of sums: maximum and sum of weights, a vector each, and `o` [group][width]."""
    return 2 * plan.isa.lanes + plan.group * plan.width


class Pieces(CachedBlocks):
    """What the parts of the kernel share: the line of granules, and the state of sums that is being worked on."""

    def __init__(self, k: KernelBuilder, plan: AttentionPlan) -> None:
        super().__init__(k, plan)
        self.heads = self.k.dim(plan.k.shape[1])
        self.row, self.count, self.vectors = index(0), index(plan.group), index(1)
        self.width = lanes_of_group(plan)
        self.task, self.tasks = bind(k.task.astype("int64")), bind(k.tasks.astype("int64"))
        self.own = bind(self.task * (plan.scratch_bytes // 4))
        self.state = self._state_of(self.task, _WHOLE)

    def _memory(self) -> "tirx.Buffer":
        """The scratch memory of all tasks."""
        return self.k.scratch_buffer(index(self.plan.scratch_bytes // 4) * self.k.tasks.astype("int64"), DType.f32)

    def region(self, name: str) -> "int | tirx.PrimExpr":
        if name in ("maximum", "total", "o"):
            return self.state + ("maximum", "total", "o").index(name) * self.lanes
        return self.own + self.plan.regions[name]

    def _state_of(self, task: "tirx.PrimExpr", state: "int | tirx.PrimExpr") -> "tirx.PrimExpr":
        start = task * (self.plan.scratch_bytes // 4) + self.plan.regions["states"]
        return start + index(state) * state_floats(self.plan)

    def _cut(self) -> None:
        """Bind whether heads are split, the line's length in units, the count of its parts and this task's `begin` and
        `until`; late tasks have none."""
        sizes, rows = T.alloc_buffer((2,), "int64"), self.k.dim(self.plan.k.shape[0])
        self.bits = index(_GRANULE_BITS)
        for i in range(2):
            T.buffer_store(sizes, index(0), [i])
        with T.serial(rows) as b:
            granules = self._units(b)
            for i, value in enumerate((sizes[0] + granules, tirx.max(sizes[1], granules))):
                T.buffer_store(sizes, value, [i])
        granules, heads = bind(sizes[0] * self.heads), bind(rows * self.heads)
        longest = quotient(heads + self.tasks - 1, self.tasks) * sizes[1]
        # from memory: formulas that hold a selection take the simplifiers seconds
        with T.If(longest * self.tasks > granules + self.tasks * _UNEVEN):
            with T.Then():
                self._deal(sizes, _GRANULE_BITS, granules)
            with T.Else():
                self._deal(sizes, _HEAD_BITS, heads)
        self.bits, self.total = bind(sizes[0]), bind(sizes[1])
        self.splits = bind(self.bits < _HEAD_BITS)
        self.parts = bind(tirx.min(self.tasks, self.total))
        self.begin = self._part(tirx.min(self.task, self.parts))
        self.until = self._part(tirx.min(self.task + 1, self.parts))

    def _deal(self, sizes: "tirx.Buffer", bits: int, units: "tirx.PrimExpr") -> None:
        for i, value in enumerate((index(bits), units)):
            T.buffer_store(sizes, value, [i])

    def _part(self, part: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return bind(quotient(self.total * part, self.parts))

    def _units(self, b: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Go to a row of the batch: bind what its queries see, and how many units that is a head."""
        self.b, self.g = b, index(0)
        self._keys_of_row()
        self.first, self.end = self._seen()
        return bind((self.end - self.first + self._keys_of(index(1)) - 1) >> self.bits)

    def _keys_of(self, units: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return units << self.bits

    def _seen(self) -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
        if self.plan.window is None:
            return index(0), bind(tirx.min(self.keys, self.slots))
        return bind(tirx.max(index(0), self.keys - tirx.min(self.slots, index(self.plan.window)))), self.keys

    def _each_row(self, body: "Callable[[tirx.PrimExpr, tirx.PrimExpr], None]") -> None:
        """Call `body(start, units)` for every row, whose part of the line begins at `start`."""
        place, rows = T.alloc_buffer((1,), "int64"), self.k.dim(self.plan.k.shape[0])
        T.buffer_store(place, index(0), [0])
        with T.serial(rows) as b:
            units, start = self._units(b), bind(place[0])
            T.buffer_store(place, start + units * self.heads, [0])
            body(start, units)


class Merge(Pieces):
    """Joins the sums of the head that this task began and others went on with, and writes its result."""

    def emit(self) -> None:
        self._cut()
        self._each_row(self._row)

    def _row(self, start: "tirx.PrimExpr", units: "tirx.PrimExpr") -> None:
        last = self.until - 1
        mine = both(self.begin < self.until, both(start <= last, last < start + units * self.heads))
        with T.If(mine), T.Then():
            self.g = bind(quotient(last - start, units))
            head = bind(start + self.g * units)
            with T.If(both(head >= self.begin, head + units > self.until)), T.Then():
                self.state = bind(self._state_of(self.task, _BEGUN))
                with T.serial(bind(self.parts - self.task - 1)) as i:
                    part = bind(self.task + 1 + i)
                    with T.If(self._part(part) < head + units), T.Then():
                        self._join(bind(self._state_of(part, _CONTINUED)))
                self._finish()

    def _join(self, other: "tirx.PrimExpr") -> None:
        """Add another state of sums to this one."""
        lanes, width = self.lanes, self.plan.width
        highest, theirs = bind(self.get(self.region("maximum"))), bind(self.get(other))
        new = bind(fast_maximum(highest, theirs))
        ours, factor = keep(power_of_two(highest - new)), keep(power_of_two(theirs - new))
        total = self.get(self.region("total")) * ours + self.get(other + lanes) * factor
        for place, value in ((self.region("maximum"), new), (self.region("total"), keep(total))):
            self.put(place, value)
        held = T.alloc_buffer((2 * lanes,), "float32")
        for i, value in enumerate((ours, factor)):
            T.buffer_store(held, value, [ramp(tirx.const(i * lanes, "int32"), lanes)])
        with T.serial(self.count) as m, T.serial(index(width // lanes)) as j:
            place = bind(m * width + j * lanes)
            mine = self.get(self.region("o") + place) * splat(held[m], lanes)
            self.put(
                self.region("o") + place, mine + self.get(other + (2 * lanes) + place) * splat(held[m + lanes], lanes)
            )


class Deal(Pieces):
    """Visits the units of this task, piece by piece; what a piece does is for the subclass to say.

    A merge is wanted where heads are split.
    """

    def emit(self) -> None:
        self._cut()
        size = index(self.plan.scratch_bytes // 4) * self.tasks
        T.buffer_store(self.k.scratch_buffer(size, DType.i32), self.splits.astype("int32"), [self.own])
        self._each_row(self._row)

    def _row(self, start: "tirx.PrimExpr", units: "tirx.PrimExpr") -> None:
        before = tirx.max(index(0), self.begin - start)
        first = bind(quotient(before, units))
        stop = bind(tirx.min(self.heads, quotient(tirx.max(index(0), self.until - start) + units - 1, units)))
        with T.serial(bind(tirx.max(index(0), stop - first))) as i:
            self.g = bind(first + i)
            head = bind(start + self.g * units)
            low = bind(tirx.max(index(0), self.begin - head))
            self.opens, self.goes_on = bind(head <= self.begin), bind(head + units < self.until)
            self._piece(low, bind(tirx.min(units, self.until - head)), units)

    def _piece(self, low: "tirx.PrimExpr", stop: "tirx.PrimExpr", units: "tirx.PrimExpr") -> None:
        whole = both(tirx.EQ(low, index(0)), tirx.EQ(stop, units))
        part = tirx.Select(low > 0, index(_CONTINUED), index(_BEGUN))
        self.state = bind(self._state_of(self.task, tirx.Select(whole, index(_WHOLE), part)))
        self.begins = bind(tirx.EQ(low, index(0)))
        self._start()
        self._visit(bind(self.first + self._keys_of(low)), bind(tirx.min(self.end, self.first + self._keys_of(stop))))
        self._add_lanes()
        with T.If(whole), T.Then():
            self._finish()

    def _blocks(self, first: "tirx.PrimExpr", stop: "tirx.PrimExpr") -> None:
        """Whole granules, and what is left."""
        with T.serial(bind(ceil_div(stop - first, GRANULE))) as piece:
            start = bind(first + piece * GRANULE)
            self._block(start, bind(tirx.min(index(GRANULE), stop - start)))

    def _add_lanes(self) -> None:
        """Where a query has several lanes, give all of them the sum of its weights."""
        place, step = self.region("total"), self.width
        total = bind(self.get(place))
        while step < self.lanes:
            total = keep(total + keep(tirx.Shuffle([total], [j ^ step for j in range(self.lanes)])))
            step *= 2
        self.put(place, total)


def even(count: int, most: int) -> int:
    """The size of like parts of a count, of which none is larger than `most`."""
    return -(-count // -(-count // most))
