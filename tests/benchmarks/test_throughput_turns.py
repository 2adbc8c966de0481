"""Turns of two techniques, the figures made of them, and the memory that is watched meanwhile."""

import copy
import json

import numpy as np
import pytest

from benchmarks.common.facts import percentiles
from benchmarks.throughput.measure import Watch, compare, refusal
from benchmarks.throughput.rows import Footprint
from benchmarks.throughput.turns import Schedule, Turn, strayed, summary, take_turns


class Script:
    """Two techniques whose times are written down beforehand; keeps who was asked for what, in order."""

    def __init__(self, reference, candidate):
        self.times = {"r": list(reference), "c": list(candidate)}
        self.asked = []

    def player(self, who):
        def play(image):
            self.asked.append((who, image))
            return Turn(self.times[who].pop(0), 0.001)

        return play

    def run(self, schedule):
        return take_turns(self.player("r"), self.player("c"), schedule, progress=lambda steady, played: None)


class TestTurns:
    def test_starter_and_images_alternate(self):
        script = Script([1.0] * 4, [0.5] * 4)
        rounds = script.run(Schedule(rounds=4, images=2))
        assert script.asked == [
            ("r", 0), ("c", 0), ("c", 1), ("r", 1), ("r", 0), ("c", 0), ("c", 1), ("r", 1)
        ]  # fmt: skip
        assert [r.reference_first for r in rounds] == [True, False, True, False]

    def test_a_strayed_round_is_repeated_on_its_own_image(self):
        script = Script([1.0, 1.3, 1.0, 1.05], [0.5, 5.0, 0.5, 0.5])
        schedule = Schedule(rounds=3, images=3)
        rounds = script.run(schedule)
        assert [r.image for r in rounds] == [0, 1, 1, 2]
        assert strayed(rounds, 0.1) == [False, True, False, False]
        figures = summary(rounds, schedule)
        assert figures["latency_ms"]["p99"] == 500  # what the disturbance did to the candidate does not count either
        assert figures["rounds"] == {"wanted": 3, "steady": 3, "strayed": 1, "tolerance": 0.1}
        assert [r["strayed"] for r in figures["raw"]] == [False, True, False, False]

    def test_a_candidate_cannot_lose_its_slow_rounds(self):
        schedule = Schedule(rounds=3, images=1)
        rounds = Script([1.0] * 3, [0.5, 5.0, 0.5]).run(schedule)
        assert len(rounds) == 3
        assert summary(rounds, schedule)["latency_ms"]["p99"] > 4900

    def test_repeats_are_bounded_and_something_is_left(self):
        schedule = Schedule(rounds=2, images=2, repeats=3)
        rounds = Script([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [1.0] * 6).run(schedule)
        assert len(rounds) == 5
        assert summary(rounds, schedule)["rounds"]["steady"] == 1

    def test_tolerance_is_a_share_of_the_median(self):
        rounds = Script([1.0, 1.0, 1.099, 0.901, 1.11, 0.89], [1.0] * 6).run(Schedule(rounds=6, images=1, repeats=0))
        assert strayed(rounds, 0.1) == [False, False, False, False, True, True]


class TestFigures:
    def test_percentiles_interpolate(self):
        times = [0.001 * n for n in (5, 1, 2, 4, 3)]
        assert percentiles(times) == pytest.approx({"p50": 3.0, "p90": 4.6, "p99": 4.96})

    def test_speedup_is_the_median_of_ratios(self):
        schedule = Schedule(rounds=3, images=1, tolerance=10)
        figures = summary(Script([3.0, 1.0, 8.0], [1.0, 1.0, 2.0]).run(schedule), schedule, batch=2)
        assert figures["speedup"] == 3  # ratios 3, 1, 4; the ratio of the medians would be 3/1 too but for the next
        assert figures["speedup_range"] == [1, 4]
        assert figures["latency_ms"]["p50"] == 1000
        assert figures["reference_latency_ms"]["p50"] == 3000
        assert figures["images_per_second"] == 2
        uneven = summary(Script([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]).run(schedule), schedule)
        assert uneven["speedup"] == 2
        assert uneven["reference_latency_ms"]["p50"] / uneven["latency_ms"]["p50"] == pytest.approx(4 / 3)

    def test_components_are_compared_within_their_round(self):
        schedule = Schedule(rounds=3, images=1, tolerance=10)
        turns = {"r": [(2.0, 1.0), (4.0, 2.0), (3.0, 6.0)], "c": [(1.0, 0.5), (1.0, 4.0), (1.0, 2.0)]}

        def player(who):
            def play(image):
                vae, unet = turns[who].pop(0)
                return Turn(10.0, 0.0, {"vae_encoder": vae, "unet_step": unet} | ({"other": 1.0} if who == "c" else {}))

            return play

        rounds = take_turns(player("r"), player("c"), schedule, progress=lambda *_: None)
        found = summary(rounds, schedule)["components"]
        assert found == {
            "vae_encoder": {"p50_ms": 1000.0, "reference_p50_ms": 3000.0, "speedup": 3.0},
            "unet_step": {"p50_ms": 2000.0, "reference_p50_ms": 2000.0, "speedup": 2.0},
        }

    def test_idle_share_belongs_to_the_one_that_rests(self):
        schedule = Schedule(rounds=1, images=1)
        rounds = take_turns(
            lambda image: Turn(2.0, 0.5), lambda image: Turn(1.0, 0.1), schedule, progress=lambda *_: None
        )
        assert summary(rounds, schedule)["idle_cpu_share"] == {"reference": 0.1, "candidate": 0.25}

    def test_fidelity_is_the_worst_image(self):
        truth = [{name: np.ones((1, 2)) for name in ("latent", "lare", "logits", "noise_prediction")} for _ in range(2)]
        ours = copy.deepcopy(truth)
        ours[1]["lare"][0, 0] = 1.5
        ours[1]["logits"][0] = (1.0, 1.25)
        del ours[0]["noise_prediction"], ours[1]["noise_prediction"]
        entry = compare(ours, truth, 0.5)
        assert entry["latent"]["worst_relative_l2"] == 0
        assert entry["lare"]["worst_relative_l2"] == pytest.approx(0.5 / 2**0.5)
        assert entry["lare"]["max_abs"] == 0.5
        assert entry["noise_prediction"] is None
        assert entry["logit"] == {"max_difference": 0.25, "over_standard_deviation": 0.5, "standard_deviation": 0.5}

    def test_broken_arrays_stay_valid_json(self):
        truth = [{name: np.ones((1, 2)) for name in ("lare", "logits")}]
        entry = compare([{name: np.full((1, 2), np.nan) for name in ("lare", "logits")}], truth, 0.5)
        assert entry["lare"] == {"worst_relative_l2": None, "max_abs": None, "not_finite": 2}
        json.dumps(entry, allow_nan=False)


class TestMemory:
    def test_refused_before_the_start_with_numbers_and_remedy(self):
        weights = 3_500_000_000
        reference, candidate = Footprint(1e9, 1.2).bytes(weights), Footprint(1e9, 2.6).bytes(weights)
        assert (reference, candidate) == (5_200_000_000, 10_100_000_000)
        assert refusal(reference, candidate, limit=20_000_000_000, available=16_000_000_000) is None
        tight, remedy = refusal(reference, candidate, limit=15_000_000_000, available=16_000_000_000)
        assert "10.1 GB beside the reference's 5.2 GB" in tight
        assert "limit of 15.0 GB" in tight
        assert remedy.startswith("raise --memory")
        full, remedy = refusal(reference, candidate, limit=20_000_000_000, available=12_000_000_000)
        assert "what is free of 12.0 GB" in full
        assert remedy.startswith("close other programs")

    def test_watch_calls_once_when_the_sum_passes(self):
        class Process:
            def __init__(self, *sizes):
                self.sizes = list(sizes)

            def resident_bytes(self):
                return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]

        calls = []
        with Watch((Process(5), Process(1, 6, 7, 2)), 10, lambda: calls.append(1)) as watch:
            watch._ended.wait(1.2)
        assert (calls, watch.peak, watch.passed) == ([1], 12, True)
