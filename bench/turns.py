"""What a turn costs: one message in, three frames out, stored on the way."""

from statistics import median
from typing import NamedTuple

from bench import load
from bench.load import Result
from bench.report import Figure, number, show
from bench.server import Server, bare, clarad

_LIMIT_SECONDS = 60.0
_CPU_RATIO_TARGET = 1.4
_HEAD = ["", "turns/s", "p50 ms", "p99 ms", "CPU us/turn", "frames/turn"]


class _Shape(NamedTuple):
    connections: int
    in_flight: int
    turns: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.connections} x {self.in_flight}"


# A lone turn is easily disturbed by whatever else the machine does: many short rounds, so that
# a disturbance falls on few of them.
_SHAPES = (_Shape(1, 1, 1_000, rounds=11), _Shape(20, 8, 8_000, rounds=5))


class _Round(NamedTuple):
    """One run against each server, right after one another."""

    bare: Result
    clarad: Result


def run() -> list[Figure]:
    """Measure each shape of load against both servers and print the medians of the rounds."""
    with bare() as floor, clarad("echo") as daemon:
        for server in (floor, daemon):  # a round that does not count
            _load(server, _SHAPES[-1])
        return [figure for shape in _SHAPES for figure in _compare(floor, daemon, shape)]


def _compare(floor: Server, daemon: Server, shape: _Shape) -> list[Figure]:
    rounds = [_Round(_load(floor, shape), _load(daemon, shape)) for _ in range(shape.rounds)]
    rows = [_row("bare", [r.bare for r in rounds]), _row("clarad", [r.clarad for r in rounds])]
    ratios = [_ratio(r, "cpu_us_per_turn") for r in rounds]
    show(
        f"Turns, {shape} (connections x in flight), {shape.turns} turns, "
        f"medians of {shape.rounds} rounds",
        _HEAD,
        [*rows, _ratio_row(rounds)],
    )
    print("  CPU clarad/bare, round by round: " + "  ".join(map(number, ratios)), flush=True)
    return [Figure(f"CPU per turn, clarad/bare, {shape}", median(ratios), "x", _CPU_RATIO_TARGET)]


def _load(server: Server, shape: _Shape) -> Result:
    return load.run(
        server,
        connections=shape.connections,
        in_flight=shape.in_flight,
        turns=shape.turns,
        limit=_LIMIT_SECONDS,
    )


def _row(name: str, results: list[Result]) -> list[str]:
    fields = Result.__struct_fields__
    return [name, *(number(median(getattr(r, field) for r in results)) for field in fields)]


def _ratio_row(rounds: list[_Round]) -> list[str]:
    ratios = (median(_ratio(r, field) for r in rounds) for field in Result.__struct_fields__)
    return ["clarad/bare", *map(number, ratios)]


def _ratio(of: _Round, field: str) -> float:
    return float(getattr(of.clarad, field) / getattr(of.bare, field))
