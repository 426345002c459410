"""What is told of a release's origin."""

from fedretrain import words


def test_the_rounds_of_a_lineage_are_summed_up() -> None:
    """Rounds, updates and who was quarantined for what; the other entries one line each, in order."""
    quarantined = [{"site": "b", "code": "norm"}, {"site": "c", "code": "late"}]
    rounds = [{"round": n, "admitted": ["a", "b"], "quarantined": quarantined[:n]} for n in range(3)]
    told = dict(words.lineage({"run": "r1", "rounds": rounds, "sites": {"a": 10, "b": 11}, "parent": None}))
    assert list(told) == ["lineage.parent", "lineage.rounds", "lineage.run", "lineage.sites"]
    assert told["lineage.rounds"] == "3 rounds, 6 updates; quarantined: b 2 (norm), c 1 (late)"
    assert (told["lineage.parent"], told["lineage.sites"]) == ("-", "a 10, b 11")
    one = [{"round": 1, "admitted": ["a"], "quarantined": []}]
    assert dict(words.lineage({"rounds": one})) == {"lineage.rounds": "1 round, 1 update"}


def test_sites_of_one_reason_are_told_together() -> None:
    """In the order in which reasons come first; beyond a few, sites are counted."""
    reasons = [("a", "no data"), ("b", "late"), ("c", "no data"), ("d", "no data")]
    assert words.together(reasons, 9) == [("3 sites (a, c, d)", "no data"), ("b", "late")]
    many = [(f"s{n}", "no data") for n in range(10)]
    assert words.together(many) == [("10 sites (s0, s1, s2, s3, s4 and 5 more)", "no data")]
    assert words.together(many, 10) == [("all 10 sites", "no data")]
