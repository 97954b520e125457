"""The collector of a command's process rests until there is a model, and a caller's process is left alone."""

import gc

from hf_peft_recipes import collector, models


def test_rest_ends_with_the_first_model_and_what_was_there_stays():
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    collector.rest()
    collector.rest()
    assert gc.get_threshold()[0] > usual[0]
    from transformers import AutoModelForCausalLM

    models.load_base(AutoModelForCausalLM, None, None)
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() > frozen


def test_a_callers_collector_is_left_alone():
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    collector.resume()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (usual, frozen)
