"""Makes a small policy that ranks the items of a dataset."""

from __future__ import annotations

from tests.conftest import make_model, make_tokenizer
from trl_rec.data import PromptFormat, RecDataset
from trl_rec.evaluation import Policy
from trl_rec.items import TokenTrie


def make_policy(dataset: RecDataset, list_length: int | None = None, batch_size: int = 7) -> Policy:
    """Returns a policy with a randomly initialised Llama. Its small vocabulary contains the catalogue's tokens. With
    `list_length`, the policy writes lists."""
    tokenizer = make_tokenizer(["a b"], vocab_size=300)
    tokenizer.add_tokens(dataset.catalog.new_tokens)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, list_length=list_length)
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=list_length is not None)
    model = make_model("llama", vocab_size=len(tokenizer), seed=0)
    return Policy(model, prompt_format, trie, pad_token_id=0, batch_size=batch_size)
