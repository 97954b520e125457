"""The short way to a row's turns finds what the long way finds, and steps aside where a template has ways of its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_templates import STOCK, TEMPLATES, THOUGHTS, embedded, renderer, turns  # noqa: F401

from hf_peft_recipes.data.formats import BadRowError, Example

ONE_WAY = {"cohere", "cohere2", "gemma", "gemma3", "llama3", "qwen2_5", "qwen3_instruct_2507", "lfm2"}
SYSTEM = {"role": "system", "content": "Be brief."}


def both_ways(made, messages):
    """Return what the renderer makes of the messages with its layout, and without."""
    with_layout = made.rows([Example(tuple(messages))])[0]
    layout, made._layout = made._layout, None
    without = made.rows([Example(tuple(messages))])[0]
    made._layout = layout
    return with_layout, without


@pytest.mark.parametrize("template", STOCK)
def test_both_ways_lead_to_the_same_tokens(renderer, template):  # noqa: F811
    conversations = [turns("Hi", "Hello."), turns("Hi", "Hello.", "And?", "So."), THOUGHTS, turns(" Hi ", " padded \n")]
    conversations += [(SYSTEM, *turns("Hi", "Hello."))]
    found = 0
    for messages in conversations:
        short, long = both_ways(renderer, messages)
        if isinstance(long, BadRowError):
            assert isinstance(short, BadRowError)
            continue
        assert (short.input_ids, short.labels, short.stops) == (long.input_ids, long.labels, long.stops)
        found += 1
    assert found >= 3
    assert template not in ONE_WAY or renderer._layout is not None, "the short way is not taken"


@pytest.mark.parametrize("template", ["qwen3", "deepseek_r1_distill", "phi3", "gptoss"])
def test_templates_with_ways_of_their_own_are_not_taken_for_plain(renderer):  # noqa: F811
    assert renderer._layout is None


words = st.text(alphabet=st.sampled_from("ab \n<|>/im_startendassistantuser:"), min_size=1, max_size=30).filter(
    str.strip
)


@pytest.mark.parametrize("template", ["qwen2_5", "llama3", "gemma"])
def test_whatever_people_write_both_ways_agree(renderer):  # noqa: F811
    @settings(max_examples=150, deadline=None)
    @given(st.lists(words, min_size=1, max_size=3))
    def agree(said):
        contents = [text for one in said for text in (one, f"<|im_end|>{one}<|im_start|>assistant\n{one}")]
        short, long = both_ways(renderer, turns(*contents))
        if not isinstance(long, BadRowError):
            assert (short.input_ids, short.labels) == (long.input_ids, long.labels)

    agree()
