"""Train a language model to call the calculator's tools with TRL's GRPOTrainer, on a CPU in a minute.

Run ``python examples/trl_grpo.py`` (needs ``pip install 'toolagent_pl[trl]'``; it ran with TRL 1.16.0 and transformers
5.24.0). Nothing is downloaded: the model is a tiny one with random weights, made from a configuration, and its
tokenizer is built from the words that there are, with a token for each call. Put a model that you have in their place,
and its own tokenizer; the environment, its data set and the trainer stay the same.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from toolagent_pl.interop.text import TextCalculator, dataset, reference_calls, text_calculator

try:
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
except ImportError:
    sys.exit("examples/trl_grpo.py: needs TRL, pip install 'toolagent_pl[trl]'")

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
CALL = '<tool_call>{{"name": "{}", "arguments": {{}}}}</tool_call>'
CHAT = """{%- for message in messages -%}
{%- if message.role == 'assistant' -%}<assistant>{{ message.content }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor -%}<eos>
{%- else -%}<{{ message.role }}>{{ message.content }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}"""
RESPONSE = {  # how the calls are found in what the model has said
    "defaults": {"role": "assistant"},
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<eos>", "content": "text"},
    },
}
Policy = Callable[[TextCalculator], Sequence[str]]


def tiny_model(
    environment: type[TextCalculator], tools: Sequence[str]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model with random weights, and a tokenizer of the words that the environment uses and of the tools' calls."""
    split = pre_tokenizers.Split(Regex(r"[a-z]+|[A-Z][a-z]+|\S"), "isolated")
    episode = environment()
    texts = [episode.reset(number=number) for number in range(200)]
    texts += [getattr(episode, name)() for name in reference_calls(episode)]
    words = sorted({piece.strip() for text in texts for piece, _ in split.pre_tokenize_str(text)} - {""})
    known = [*SPECIAL.values(), "<user>", "<tool>", "<assistant>", *words, *map(str, range(10))]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    fast.add_tokens(["<user>", "<tool>", "<assistant>", *(CALL.format(name) for name in tools)])
    fast.chat_template, fast.response_template, fast.padding_side = CHAT, RESPONSE, "left"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": fast.pad_token_id, "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **sizes, **special)), fast


def mean_reward(environment: type[TextCalculator], policy: Policy, problems: int) -> float:
    """Mean reward of a policy that says all its calls at once, on problems that are not trained on."""
    episode, total = environment(), 0.0
    for number in range(problems):
        episode.reset(number=number, seed=1)
        for name in policy(episode):
            if not episode.done:
                getattr(episode, name)()
        total += episode.reward
    return total / problems


def solved(environments: Sequence[TextCalculator], **_: Any) -> list[float]:
    """The reward function that TRL asks for."""
    return [episode.reward for episode in environments]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what a scripted policy, a random one and the model get."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="updates")
    parser.add_argument("--stages", nargs="+", default=["E1"], help="problems")
    options = parser.parse_args(arguments)

    environment = text_calculator(options.stages)
    tools = [name for name in vars(environment) if not name.startswith("_")]
    model, tokenizer = tiny_model(environment, tools)
    rows = dataset(environment, 1000)
    with tempfile.TemporaryDirectory() as directory:
        trainer = trl.GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            environment_factory=environment,
            reward_funcs=solved,
            args=trl.GRPOConfig(
                output_dir=directory,
                max_steps=options.steps,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=64,
                max_tool_calling_iterations=4,
                learning_rate=3e-3,
                beta=0.0,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
        )
        trainer.train()
    logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    rng = random.Random(0)
    result = {
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__},
        "scripted": mean_reward(environment, reference_calls, 500),
        "random": mean_reward(environment, lambda _: rng.choices(tools, k=12), 2000),
        "rewards of the updates": logged,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
