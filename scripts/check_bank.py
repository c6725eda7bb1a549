"""Checks a bank of axes, questions and dialogues, and says what is in it.

python scripts/check_bank.py                                   # the shipped bank
python scripts/check_bank.py my_axes.yaml [another.yaml …]      # each of them, merged over the shipped bank
python scripts/check_bank.py my_axes.yaml --tokenizer=FOLDER    # also tokens per question; FOLDER: a local checkpoint
"""

from absl import app, flags

from mood_jax import bank, cli, console
from mood_jax.bank import report
from mood_jax.errors import UserError

TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder of a local checkpoint, whose tokenizer counts tokens.")


def show(name: str, records: bank.Bank, since: int) -> int:
    """Prints what the files from rank `since` on hold, and returns the number of problems with their texts."""
    print(f"\n{name}: {sum(place.rank >= since for place in records.places.values())} records")
    tables = [report.axis_counts(records, since), report.other_counts(records, since), report.turn_quartiles(records)]
    if TOKENIZER.value:
        from mood_jax.generation.chat import Chat  # only here: it brings transformers along

        chat = Chat.from_folder(TOKENIZER.value)
        tables.append(report.question_tokens(records, lambda text: len(chat.encode(text)), since))
    for header, rows in tables:
        if rows:
            print(f"\n{console.table(header, rows)}")
    found = bank.problems(records, since)
    print(
        f"\n{len(found)} problems" if found else "\nno duplicate, no near duplicate, no pole word, lengths in balance"
    )
    for problem in found:
        print(f"  {problem}")
    return len(found)


def main(argv: list[str]) -> None:
    try:
        shipped = bank.shipped()
        first = 1 + max(place.rank for place in shipped.places.values())
        wrong = 0 if argv[1:] else show("shipped bank", shipped, 0)
        for path in argv[1:]:
            wrong += show(path, bank.load(path, check=False), first)
        if wrong:
            raise UserError(f"{wrong} problems in the texts, listed above; mend those lines")
    except UserError as error:
        cli.fail(str(error))


if __name__ == "__main__":
    app.run(main)
