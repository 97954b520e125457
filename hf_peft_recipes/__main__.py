"""`python -m hf_peft_recipes`, and what `accelerate launch -m hf_peft_recipes` starts."""

from hf_peft_recipes.cli.app import main

if __name__ == "__main__":
    main()
