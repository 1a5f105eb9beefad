from itertools import product
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clarad.messages.lifecycle import (
    OUTCOMES,
    TRANSITIONS,
    IllegalTransition,
    Lifecycle,
    Signal,
    State,
)

OVER: Final = frozenset({State.ENDED, State.DROPPED})
DECIDED: Final = frozenset({State.DOOMED, State.SETTLING, *OVER})


def after(*signals: Signal) -> Lifecycle:
    life = Lifecycle()
    for signal in signals:
        life.apply(signal)
    return life


class MessagesLife(RuleBasedStateMachine):
    """Anything may happen to a message, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Lifecycle()
        self.outcomes: list[Signal] = []
        self.endings = 0

    def send(self, signal: Signal) -> bool:
        before = self.life.state
        try:
            took_effect = self.life.apply(signal)
        except IllegalTransition:
            assert self.life.state is before
            return False
        if not took_effect:
            assert self.life.state is before
        elif signal in OUTCOMES:
            self.outcomes.append(signal)
        if self.life.state is State.ENDED and before is not State.ENDED:
            self.endings += 1
        return took_effect

    @rule(signal=st.sampled_from(Signal))
    def anything_happens(self, signal: Signal) -> None:
        self.send(signal)

    @precondition(lambda self: self.life.decided)
    @rule(signal=st.sampled_from(sorted(OUTCOMES)))
    def an_outcome_comes_too_late(self, signal: Signal) -> None:
        assert not self.send(signal)

    @precondition(lambda self: self.life.state in OVER)
    @rule(signal=st.sampled_from(Signal))
    def something_happens_after_the_end(self, signal: Signal) -> None:
        before = self.life.state
        assert not self.send(signal)
        assert self.life.state is before

    @invariant()
    def the_first_outcome_wins(self) -> None:
        assert len(self.outcomes) <= 1

    @invariant()
    def it_ends_once_at_most(self) -> None:
        assert self.endings <= 1

    @invariant()
    def what_has_an_outcome_is_decided(self) -> None:
        assert self.life.decided or not self.outcomes

    @invariant()
    def what_has_ended_has_an_outcome(self) -> None:
        assert self.outcomes or self.life.state is not State.ENDED

    def teardown(self) -> None:
        """However it came this far, it still comes to an end."""
        for signal in (Signal.ACCEPTED, Signal.CANCELLED, Signal.SETTLED):
            self.send(signal)
        assert self.life.state in OVER


TestAnythingMayHappenToAMessage = MessagesLife.TestCase


@given(st.lists(st.sampled_from(Signal)))
def test_a_signal_moves_a_message_or_is_too_late_or_is_a_bug(signals: list[Signal]) -> None:
    life = Lifecycle()
    for signal in signals:
        before = life.state
        expected = TRANSITIONS[before].get(signal)
        if expected is not None:
            assert life.apply(signal)
            assert life.state is expected
        elif before in DECIDED and signal in OUTCOMES | {Signal.BEGUN}:
            assert not life.apply(signal)
            assert life.state is before
        else:
            with pytest.raises(IllegalTransition):
                life.apply(signal)
            assert life.state is before


# --- the table -----------------------------------------------------------------------------------


def steps() -> list[tuple[State, Signal, State]]:
    return [
        (before, signal, then)
        for before, row in TRANSITIONS.items()
        for signal, then in row.items()
    ]


def reachable(start: State) -> set[State]:
    seen = {start}
    border = [start]
    while border:
        found = set(TRANSITIONS[border.pop()].values()) - seen
        seen |= found
        border += found
    return seen


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(State)


def test_every_state_can_come_about() -> None:
    assert reachable(State.RECEIVED) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_can_come_to_an_end(state: State) -> None:
    assert reachable(state) & OVER


@pytest.mark.parametrize("state", sorted(OVER))
def test_nothing_leads_out_of_the_end(state: State) -> None:
    assert reachable(state) == {state}


def test_no_step_leads_back() -> None:
    assert all(before not in reachable(then) for before, _, then in steps())


def test_a_message_ends_only_once_its_terminal_frame_is_stored() -> None:
    into = [(before, signal) for before, signal, then in steps() if then is State.ENDED]
    assert into == [(State.SETTLING, Signal.SETTLED)]


def test_only_the_store_accepts_and_drops_and_only_what_it_has_not_accepted_yet() -> None:
    from_the_store = {before for before, s, _ in steps() if s in (Signal.ACCEPTED, Signal.DROPPED)}
    assert from_the_store == {State.RECEIVED, State.DOOMED}


def test_a_message_is_dropped_only_by_the_store() -> None:
    into = {signal for _, signal, then in steps() if then is State.DROPPED}
    assert into == {Signal.DROPPED}


def test_only_what_waits_can_begin() -> None:
    begins = [(before, then) for before, signal, then in steps() if signal is Signal.BEGUN]
    assert begins == [(State.WAITING, State.RUNNING)]


@pytest.mark.parametrize("signal", [Signal.COMPLETED, Signal.TIMED_OUT])
def test_only_what_runs_can_complete_or_time_out(signal: Signal) -> None:
    assert [before for before, s, _ in steps() if s is signal] == [State.RUNNING]


def test_an_outcome_decides() -> None:
    assert {then for _, s, then in steps() if s in OUTCOMES} == {State.SETTLING, State.DOOMED}


# --- the rules, one by one -----------------------------------------------------------------------


def test_a_message_is_accepted_begun_completed_and_settled() -> None:
    life = after(Signal.ACCEPTED, Signal.BEGUN, Signal.COMPLETED, Signal.SETTLED)
    assert life.state is State.ENDED


def test_a_message_that_the_store_refuses_is_dropped() -> None:
    assert after(Signal.DROPPED).state is State.DROPPED


def test_a_cancel_before_the_store_has_the_message_dooms_it() -> None:
    assert after(Signal.CANCELLED).state is State.DOOMED


def test_a_doomed_message_is_settled_once_it_is_accepted() -> None:
    assert after(Signal.CANCELLED, Signal.ACCEPTED).state is State.SETTLING
    assert after(Signal.CANCELLED, Signal.ACCEPTED, Signal.SETTLED).state is State.ENDED


def test_a_doomed_message_that_the_store_refuses_is_dropped() -> None:
    assert after(Signal.CANCELLED, Signal.DROPPED).state is State.DROPPED


def test_a_doomed_message_never_begins() -> None:
    life = after(Signal.CANCELLED)
    assert not life.apply(Signal.BEGUN)
    assert life.state is State.DOOMED


def test_a_message_can_be_cancelled_while_it_waits() -> None:
    assert after(Signal.ACCEPTED, Signal.CANCELLED).state is State.SETTLING


def test_a_message_whose_outcome_is_decided_does_not_begin() -> None:
    life = after(Signal.ACCEPTED, Signal.CANCELLED)
    assert not life.apply(Signal.BEGUN)
    assert life.state is State.SETTLING


WHILE_RUNNING = sorted(OUTCOMES - {Signal.INTERRUPTED})


@pytest.mark.parametrize(("first", "second"), list(product(WHILE_RUNNING, sorted(OUTCOMES))))
def test_of_two_outcomes_the_first_counts(first: Signal, second: Signal) -> None:
    life = after(Signal.ACCEPTED, Signal.BEGUN)
    assert life.apply(first)
    assert not life.apply(second)


@pytest.mark.parametrize("signal", sorted(OUTCOMES))
def test_an_outcome_after_the_end_is_too_late(signal: Signal) -> None:
    life = after(Signal.ACCEPTED, Signal.BEGUN, Signal.COMPLETED, Signal.SETTLED)
    assert not life.apply(signal)
    assert life.state is State.ENDED


@pytest.mark.parametrize(
    ("state", "signal"),
    [
        (State.RECEIVED, Signal.BEGUN),
        (State.RECEIVED, Signal.COMPLETED),
        (State.RECEIVED, Signal.TIMED_OUT),
        (State.RECEIVED, Signal.SETTLED),
        (State.DOOMED, Signal.SETTLED),
        (State.WAITING, Signal.ACCEPTED),
        (State.WAITING, Signal.COMPLETED),
        (State.WAITING, Signal.SETTLED),
        (State.RUNNING, Signal.BEGUN),
        (State.RUNNING, Signal.DROPPED),
        (State.RUNNING, Signal.SETTLED),
        (State.SETTLING, Signal.ACCEPTED),
        (State.ENDED, Signal.SETTLED),
        (State.ENDED, Signal.DROPPED),
        (State.DROPPED, Signal.ACCEPTED),
    ],
)
def test_a_signal_that_has_no_place_is_a_bug_and_is_said_to_be_one(
    state: State, signal: Signal
) -> None:
    with pytest.raises(IllegalTransition, match=f"{signal} while {state}"):
        Lifecycle(state).apply(signal)
