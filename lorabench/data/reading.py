"""What is odd about how a tokenizer reads the rows: refused where nothing is left to read, else said."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import tokenizers
from packaging import version

from lorabench.catalog.families import family_of
from lorabench.data.batching import TokenizedRows
from lorabench.data.task import Rows
from lorabench.data.texts import name_rows
from lorabench.data.tokenizer import marks_of
from lorabench.errors import IssueList
from lorabench.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Share of unknown tokens from which a tokenizer is hardly one for these texts.
MANY_UNKNOWN = 0.05
# Before it, where two texts are too long by themselves the longer one does not always keep the odd token.
CUTS_PAIRS_EVENLY = version.parse("0.23.3")


def check_read(splits: Mapping[str, Rows], tokens: Mapping[str, TokenizedRows]) -> None:
    """Refuse rows of which the tokenizer leaves nothing. Raises `ConfigError`."""
    issues = IssueList()
    for split, rows in splits.items():
        bad = [rows.ids[i] for i in tokens[split].unread]
        if bad:
            issues.add(
                f"the {split} rows: {name_rows(bad)} with a text of which the tokenizer leaves "
                "nothing; expected a file without them"
            )
    issues.raise_if_any()


def remarks_on(
    splits: Mapping[str, Rows],
    tokens: Mapping[str, TokenizedRows],
    tokenizer: "PreTrainedTokenizerBase",
    model_type: str,
) -> list[str]:
    """What the user should know of the rows as this tokenizer reads them, a sentence each."""
    remarks = []
    found = Counter(mark for rows in splits.values() for mark in _marks_in(rows, marks_of(tokenizer)))
    if found and tokenizer.split_special_tokens:
        mark, count = found.most_common(1)[0]
        remarks.append(
            f"{counted(found.total(), 'row')} with a mark of the tokenizer, {mark!r} in {count}; it is read as text"
        )
    share = unknown_share([ids for split in tokens.values() for ids in split.input_ids], tokenizer)
    if share >= MANY_UNKNOWN:
        remarks.append(
            f"{100 * share:.0f} % of the tokens are {tokenizer.unk_token}: words the tokenizer does not know"
        )
    limit = tokenizer.model_max_length
    beyond = sum(length > limit for split in tokens.values() for length in split.lengths)
    if beyond:
        remarks.append(
            f"{counted(beyond, 'row')} of more than {limit} tokens, the most that the tokenizer gives for its model"
        )
    cut = any(rows.pairs is not None and tokens[split].cut_rows for split, rows in splits.items())
    if cut and version.parse(tokenizers.__version__) < CUTS_PAIRS_EVENLY:
        remarks.append(
            f"tokenizers {tokenizers.__version__} cuts some pairs one token elsewhere than this run and newer "
            f"versions do; the card's code needs tokenizers {CUTS_PAIRS_EVENLY} or newer to give the same logits"
        )
    family = family_of(model_type)
    if family is not None and not family.causal and tokenizer.num_special_tokens_to_add() == 0:
        remarks.append("the tokenizer puts no mark before a text: what is classified is its first token")
    return remarks


def unknown_share(input_ids: Sequence[Sequence[int]], tokenizer: "PreTrainedTokenizerBase") -> float:
    """Which part of the tokens of texts stands for words that the tokenizer does not know."""
    unknown = tokenizer.unk_token_id
    marks = tokenizer.num_special_tokens_to_add()
    total = sum(len(ids) - marks for ids in input_ids)
    if not isinstance(unknown, int) or total <= 0 or unknown in tokenizer("")["input_ids"]:
        return 0.0
    return sum(list(ids).count(unknown) for ids in input_ids) / total


def _marks_in(rows: Rows, marks: Iterable[str]) -> Iterator[str]:
    """The first mark in each row that has one."""
    known = sorted(marks, key=len, reverse=True)
    if not known:
        return
    pattern = re.compile("|".join(map(re.escape, known)))
    for content in rows.contents:
        found = next((match for text in content if (match := pattern.search(text))), None)
        if found is not None:
            yield found[0]
