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
