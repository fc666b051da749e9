"""What is learnt of NATs that cut connections at a certain age, under fake time."""

import random

import pytest

from services.tunnel.core.lifetime import LATE, MAX_PATHS, SAFE, SPREAD, TRIAL_FIRST, TRIAL_MOST, Lifetimes

PATH = ("192.168.1.7", "203.0.113.1")
OTHER = ("192.168.1.7", "203.0.113.2")


class Story:
    """Losses, told by when and how old."""

    def __init__(self, seed: int = 0) -> None:
        self.lifetimes = Lifetimes(random.Random(seed))

    def lost(self, when: float, age: float, *, path: tuple[str, str] = PATH, unsure: float = 0.3) -> "Story":
        self.lifetimes.lost(path, when - age, when, when + unsure)
        return self

    def lived(self, when: float, age: float, *, path: tuple[str, str] = PATH) -> "Story":
        self.lifetimes.lived(path, when - age, when)
        return self

    @property
    def limit(self) -> float | None:
        return self.lifetimes.limit(PATH)


def believed() -> Story:
    return Story().lost(100, 60).lost(170, 61)


@pytest.mark.parametrize(
    ("story", "limit"),
    [
        (Story(), None),
        (Story().lost(100, 60), None),
        (Story().lost(100, 60).lost(170, 61), 60),
        (Story().lost(100, 60).lost(170, 56), 56),
        (Story().lost(100, 60).lost(170, 40), None),
        (Story().lost(100, 60).lost(170, 40).lost(230, 41), 40),
        (Story().lost(100, 12).lost(120, 14), 12),
        (Story().lost(100, 60).lost(170, 61, path=OTHER), None),
        (Story().lost(100, 60).lost(101, 60.5), None),
        (Story().lost(100, 60).lost(101, 60.5).lost(170, 60), 60),
        (Story().lost(100, 58, unsure=5).lost(170, 60), 58),
        (Story().lost(100, 30, unsure=30).lost(170, 60), None),
        (Story().lost(100, 5).lost(170, 5), None),
        (Story().lost(9000, 5000).lost(18000, 5000), None),
        (Story().lived(90, 200).lost(100, 60).lost(170, 60), 60),
        (Story().lost(100, 60).lived(101, 200).lost(170, 60), None),
        (Story().lost(100, 60).lived(150, 61).lost(170, 60), 60),
        (Story().lost(100, 60).lived(101, 200, path=OTHER).lost(170, 60), 60),
        (Story().lost(100, 60).lost(170, 60).lost(170, 20, path=OTHER), None),
        (Story().lost(100, 60).lost(170, 20, path=OTHER).lost(170, 60), None),
        (Story().lost(100, 60).lost(170, 60.5, path=OTHER).lost(170, 60), 60),
        (Story().lost(100, 60).lost(170, 60).lost(190, 20, path=OTHER), 60),
    ],
    ids=[
        "nothing",
        "one loss",
        "two that agree",
        "the smaller counts",
        "two that do not",
        "the last two",
        "within three seconds",
        "on two paths",
        "at one moment",
        "at one moment, and again",
        "noticed by a heartbeat",
        "nobody knows when",
        "younger than any NAT",
        "older than matters",
        "an older one lived before",
        "an older one lives",
        "one as old lives",
        "an older one lives elsewhere",
        "an outage, told afterwards",
        "an outage, told before",
        "the NAT has cut elsewhere, too",
        "another time",
    ],
)
def test_what_is_believed(story: Story, limit: float | None) -> None:
    assert story.limit == limit


def test_connections_are_replaced_before_the_cut_and_not_all_at_once() -> None:
    lifetimes = believed().lifetimes
    ages = []
    for phase in (0.0, 0.5, 0.999):
        age = next(age for age in range(100) if lifetimes.due(PATH, 200, 200 + age, phase, expendable=False))
        ages.append(age)
    assert ages[0] <= SAFE * 60 + 1
    assert ages[0] > ages[1] > ages[2] >= SAFE * (1 - SPREAD) * 60 - 1
    assert not lifetimes.due(OTHER, 0, 10_000, 0.0, expendable=False)


def test_one_that_could_not_be_replaced_is_late_before_it_is_cut() -> None:
    lifetimes = believed().lifetimes
    assert SAFE < LATE < 1
    assert not lifetimes.late(PATH, 0, LATE * 60 - 1) and lifetimes.late(PATH, 0, LATE * 60)
    assert not lifetimes.late(OTHER, 0, 10_000)


def test_a_belief_that_is_outlived_is_dropped() -> None:
    assert believed().lived(300, 66).limit == 60
    assert believed().lived(300, 69).limit is None


def test_a_belief_is_tested_with_what_nobody_needs_and_ever_more_rarely() -> None:
    story, now, tests = believed(), 170.0, []
    for _ in range(14):
        began = now
        while story.lifetimes.due(PATH, now - 70, now, 0.0, expendable=True):
            now += 10
        assert story.lifetimes.due(PATH, now - 70, now, 0.0, expendable=False), "never with what is needed"
        tests.append(now - began)
        story.lost(now, 60)
    assert TRIAL_FIRST / 2 <= tests[0] <= 2 * TRIAL_FIRST
    assert tests[5] > 4 * tests[0]
    assert tests[-1] <= 1.5 * TRIAL_MOST + 10


def test_another_network_is_another_story() -> None:
    story = believed()
    story.lifetimes.forget({"192.168.1.8"})
    assert story.limit == 60, "another address of this host is gone"
    story.lifetimes.forget({PATH[0]})
    assert story.limit is None
    assert story.lost(1000, 60).limit is None


def nat() -> Story:
    """Two paths from one address of this host have the same lifetime."""
    return believed().lost(110, 62, path=OTHER).lost(180, 61, path=OTHER)


NEW, ELSEWHERE = (PATH[0], "203.0.113.3"), ("192.168.2.7", "203.0.113.3")


@pytest.mark.parametrize(
    ("story", "limit"),
    [
        (believed(), None),
        (nat(), 60),
        (nat().lived(190, 200, path=NEW), None),
        (nat().lived(190, 62, path=NEW), 60),
        (nat().lived(190, 200), None),
        (believed().lost(110, 30, path=OTHER).lost(180, 30, path=OTHER), None),
        (nat().lost(200, 40, path=NEW), 60),
        (nat().lost(200, 40, path=NEW).lost(290, 40, path=NEW), 40),
    ],
    ids=[
        "one path",
        "two that agree",
        "another outlives them",
        "another is as old",
        "one of both was wrong",
        "two that do not",
        "a cut of its own",
        "a lifetime of its own",
    ],
)
def test_a_lifetime_that_several_paths_have_is_believed_of_all_from_the_same_address(
    story: Story, limit: float | None
) -> None:
    """FAILURES 18: it is this host's own NAT that cuts, so a new peer costs no cuts."""
    assert story.lifetimes.limit(NEW) == limit
    assert story.lifetimes.limit(ELSEWHERE) is None
    assert story.lifetimes.due(NEW, 1000, 1060, 0.0, expendable=False) == (limit is not None)


def test_paths_that_were_shown_to_be_different_are_not_taken_for_alike_again() -> None:
    story = nat().lived(190, 200, path=NEW).lost(250, 60).lost(260, 61, path=OTHER)
    assert story.limit == 60 and story.lifetimes.limit(NEW) is None
    story.lifetimes.forget({PATH[0]})
    for when, path in ((1000, PATH), (1010, OTHER), (1070, PATH), (1080, OTHER)):
        story.lost(when, 60, path=path)
    assert story.lifetimes.limit(NEW) == 60, "another network is another story"


def test_a_router_that_cuts_between_50_and_75_seconds_is_learnt() -> None:
    """What was reported of a carrier (FAILURES 18)."""
    dice, learnt = random.Random(7), 0
    for seed in range(50):
        story, now = Story(seed), 0.0
        for _ in range(12):  # connections one after the other, each cut
            age = dice.uniform(50, 75)
            now += age
            story.lost(now, age)
            if story.limit is not None:
                learnt += 1
                break
    assert learnt == 50


def test_random_ages_are_hardly_ever_taken_for_a_lifetime() -> None:
    """Connections to one far end that end by chance, three at a time, as a session and a relay have them: with so many
    alive, one that is older than two losses of the same age is never far. What is believed wrongly does not last."""
    dice = random.Random(3)
    for seed in range(5):
        story, started, wrong, total = Story(seed), [0.0, 0.0, 0.0], 0, 20_000
        ends = [dice.expovariate(1 / 120) for _ in started]
        for now in range(total):
            for index, began in enumerate(started):
                if now >= ends[index]:
                    story.lost(now, now - began)
                    started[index], ends[index] = now, now + dice.expovariate(1 / 120)
                else:
                    story.lived(now, now - began)
            wrong += story.limit is not None
        assert wrong < 0.05 * total


def test_what_is_kept_is_bounded() -> None:
    story = Story()
    for number in range(3 * MAX_PATHS):
        for when in (100, 200):
            story.lost(1000 * number + when, 60, path=("192.168.1.7", f"far {number}"))
    assert len(story.lifetimes._beliefs) == MAX_PATHS
    assert len(story.lifetimes._losses) < 100
    assert story.lifetimes.limit(("192.168.1.7", f"far {3 * MAX_PATHS - 1}")) == 60
