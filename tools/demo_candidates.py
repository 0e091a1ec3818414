"""Prompts of which the demo's samples are chosen: sentences of a small grammar in the set's words.

    python tools/demo_candidates.py OUT.jsonl

Every prompt asks for a sentence that stands in it, so that the right answer is known. The grammar
has frames of the four kinds of the set, each a sentence, a question it answers (where the kind has
one) and what else the text says; places, people and months are drawn by a seed. Each drawn text is
asked for in every way that the kind knows, and some stand on a page of many texts.
`choose_demo_samples.py` reads the file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SLOTS = {
    "town": "Arden,Bexley,Corran,Dalby,Eastwick,Fenwick,Garvel,Hollow Creek,Ilmen,Kirkby,Larne,"
    "Merton,Norbury,Ormsby,Penrith,Ravena,Selby,Tarbert,Upton,Wexford",
    "month": "January,March,April,May,June,August,September,November",
    "day": "Monday,Tuesday,Wednesday,Thursday,Friday,Saturday",
    "name": "Anna,Bruno,Clara,Daniel,Elena,Felix,Greta,Hugo,Irene,Jonas,Maria,Peter,Rosa,Simon",
    "name2": "Alma,Boris,Carla,David,Emma,Frank,Helga,Ivan,Lena,Oscar",
    "animal": "horses,goats,cows,donkeys,geese",
    "color": "green,white,blue,yellow,gray",
    "number": "twelve,twenty,thirty,forty,fifty",
    "hour": "six,seven,eight,nine,ten",
    "fruit": "apples,pears,plums,cherries,grapes",
    "season": "spring,summer,autumn,winter",
}


@dataclass(frozen=True)
class Frame:
    """A text of which one sentence is asked for."""

    kind: str
    sentence: str
    question: str = ""
    rest: str = ""


FRAMES = (
    Frame(
        "summary",
        "The public pool of {town} will be closed in {month} because the floor must be repaired.",
        rest="Swimmers can use the pool in the next town. Tickets for the season stay valid.",
    ),
    Frame(
        "summary",
        "The school in {town} bought {number} new computers with the money of the summer fair.",
        rest="They stand in two bright rooms. Parents can learn there in the evening.",
    ),
    Frame(
        "summary",
        "The ferry to {town} will leave one hour later in {season} because of the tides.",
        rest="Tickets cost the same as before. Bicycles travel for free.",
    ),
    Frame(
        "summary",
        "The farmers of {town} sold more {fruit} this year than in any year before.",
        rest="The {season} was warm. Many of them went to the city by train.",
    ),
    Frame(
        "summary",
        "The new bridge at {town} is two hundred feet long and carries cars and trains.",
        rest="It took three years to build. The old bridge is now a path for walkers.",
    ),
    Frame(
        "summary",
        "The museum of {town} shows {number} old clocks that still keep the right time.",
        rest="A guide winds them every morning. Children pay nothing on {day}.",
    ),
    Frame(
        "summary",
        "The town of {town} planted {number} young trees along the road to the station.",
        rest="They are watered twice a week. In ten years they will give shade.",
    ),
    Frame(
        "summary",
        "A storm in {month} broke the windows of the old church in {town}.",
        rest="Nobody was in the building. The glass will come from Italy.",
    ),
    Frame(
        "summary",
        "The bus from {town} to the coast will run every hour from the first of {month}.",
        rest="The buses are new and quiet. Dogs may ride in the back.",
    ),
    Frame(
        "summary",
        "The market of {town} has moved to the square behind the town hall.",
        rest="There is more room for the stalls. It begins at {hour} in the morning.",
    ),
    Frame(
        "summary",
        "The hospital in {town} needs more nurses because many patients come in {season}.",
        rest="New nurses get a flat near the park. The work starts in {month}.",
    ),
    Frame(
        "summary",
        "The old railway station of {town} is now a library with a small cafe.",
        rest="Trains stop at the new station. The clock on the tower is lit at night.",
    ),
    Frame(
        "summary",
        "The choir of {town} will sing songs from ten countries in the church on {day}.",
        rest="The doors open at {hour}. A small band plays before it begins.",
    ),
    Frame(
        "summary",
        "The fire brigade of {town} saved {number} {animal} from a burning barn in the night.",
        rest="The roof fell at dawn. No one was hurt.",
    ),
    Frame(
        "summary",
        "The lake near {town} was frozen for {number} days in the winter of 1963.",
        rest="People walked over the ice to the island. A baker sold rolls there.",
    ),
    Frame(
        "summary",
        "The doctors of {town} have built a small hospital for sick and old {animal}.",
        rest="It stands near the station. Farmers pay only for the food.",
    ),
    Frame(
        "summary",
        "Three farmers from {town} have opened a small shop for milk, cheese and honey.",
        rest="It is closed on {day}. Children may feed the {animal}.",
    ),
    Frame(
        "summary",
        "{name} won the race around the lake in {month} and got a silver cup.",
        rest="It rained at the start. {number} people ran in the race.",
    ),
    Frame(
        "summary",
        "Every {day} a free bus takes the children of {town} to the swimming pool.",
        rest="It leaves at the town hall. Parents may come along.",
    ),
    Frame(
        "summary",
        "In {month} the town of {town} will plant {number} trees along the river.",
        rest="The trees are young oaks. The school will help.",
    ),
    Frame(
        "summary",
        "Two old ships from the harbor of {town} have become a school for sailors.",
        rest="The lessons begin at {hour}. A cook makes soup for all.",
    ),
    Frame(
        "summary",
        "Since {month} the night train to {town} has stopped at every small station.",
        rest="The beds are new. Breakfast costs ten dollars.",
    ),
    Frame(
        "summary",
        "Doctors in {town} say that a walk of {number} minutes a day keeps the heart strong.",
        rest="They asked two thousand people. Most of them walk to work.",
    ),
    Frame(
        "qa",
        "The concert in {town} begins at {hour} in the evening on the first {day} of {month}.",
        "When does the concert in {town} begin?",
        "The hall has room for {number} people. There is tea after the music.",
    ),
    Frame(
        "qa",
        "{name} found the lost ring under the old wooden bench in the garden.",
        "Where did {name} find the lost ring?",
        "It had been gone for two years. The stone in it is {color}.",
    ),
    Frame(
        "qa",
        "The {animal} of {name} sleep in the long {color} barn behind the house.",
        "Where do the {animal} of {name} sleep?",
        "In the morning they walk to the river. They eat hay and grass.",
    ),
    Frame(
        "qa",
        "A ticket for the boat to {town} costs {number} dollars for adults.",
        "How much does a ticket for the boat to {town} cost?",
        "The trip takes two hours. Children travel for free in {season}.",
    ),
    Frame(
        "qa",
        "The old mill of {town} was built by three brothers from the mountains.",
        "Who built the old mill of {town}?",
        "It has a wheel of oak. Today it is a hotel with {number} rooms.",
    ),
    Frame(
        "qa",
        "The library of {town} lends books, films and musical instruments to its readers.",
        "What does the library of {town} lend to its readers?",
        "It is closed on {day}. A card costs nothing.",
    ),
    Frame(
        "qa",
        "{name} goes to work on a {color} bicycle that once belonged to a friend.",
        "How does {name} go to work?",
        "The trip takes {number} minutes. In {season} she takes the train.",
    ),
    Frame(
        "qa",
        "The gardener of {town} waters the roses with rain from a large barrel.",
        "How does the gardener of {town} water the roses?",
        "The roses are {color} and red. They bloom until {month}.",
    ),
    Frame(
        "qa",
        "The meeting of the chess club will be held in room {hour} on {day}.",
        "Where will the meeting of the chess club be held?",
        "Please bring your own board. {name} will make coffee.",
    ),
    Frame(
        "qa",
        "The baker of {town} sells warm bread with {fruit} and nuts every {day} morning.",
        "What does the baker of {town} sell every {day} morning?",
        "The shop opens at {hour}. There is often a long line.",
    ),
    Frame(
        "qa",
        "The clock of {town} was made by two brothers from the city of Lyon.",
        "Who made the clock of {town}?",
        "It has four bells. On {day} it is wound by hand.",
    ),
    Frame(
        "qa",
        "The {animal} of {town} are washed in the river on the last {day} of {month}.",
        "When are the {animal} of {town} washed in the river?",
        "Children help and get wet. Then there is cake with {fruit}.",
    ),
    Frame(
        "qa",
        "The baker {name} sells bread, rolls and cakes in a {color} shop near the bridge.",
        "What does the baker {name} sell?",
        "The shop opens at {hour}. It is closed on {day}.",
    ),
    Frame(
        "qa",
        "The old tower of {town} was built by the monks of a small island.",
        "Who built the old tower of {town}?",
        "It has {number} steps. From the top one can see the sea.",
    ),
    Frame(
        "qa",
        "The students of {town} planted {number} young trees behind the old school in {month}.",
        "What did the students of {town} plant?",
        "They water them twice a week. {name} drew a map of the garden.",
    ),
    Frame(
        "qa",
        "{name} keeps {number} {animal} in a field behind the old railway station.",
        "Where does {name} keep the {animal}?",
        "They eat grass and hay. A dog looks after them.",
    ),
    Frame(
        "qa",
        "Two brothers from {town} found the old coins in a clay pot under the floor.",
        "Who found the old coins?",
        "The pot was broken. The coins are now in a museum.",
    ),
    Frame(
        "qa",
        "Visitors of the castle in {town} must leave their bags in the hall near the gate.",
        "Where must visitors of the castle in {town} leave their bags?",
        "It opens at {hour}. Dogs must stay outside.",
    ),
    Frame(
        "qa",
        "On {day} the shops of {town} are open from {hour} in the morning until midnight.",
        "When are the shops of {town} open on {day}?",
        "There is music in the streets. Cars must stay outside.",
    ),
    Frame(
        "qa",
        "{name} learned to play the violin from an uncle in the town of {town}.",
        "Where did {name} learn to play the violin?",
        "The lessons were on {day}. The violin is very old.",
    ),
    Frame(
        "qa",
        "Children under six pay three dollars for a ticket to the zoo of {town}.",
        "How much do children under six pay for a ticket to the zoo of {town}?",
        "The zoo opens at {hour}. The {animal} may be fed.",
    ),
    Frame("rewrite", "The {animal} crossed the road near {town} and walked into the forest."),
    Frame("rewrite", "The captain painted his small boat {color} before the race in {month}."),
    Frame("rewrite", "My uncle grows {fruit} and beans in a garden behind the station."),
    Frame("rewrite", "{name} bought two tickets for the night train to {town}."),
    Frame("rewrite", "The teacher hung a large map of the islands beside the {color} door."),
    Frame("rewrite", "The doctor visits the village of {town} every {day} afternoon."),
    Frame("rewrite", "Please put the {color} cups back on the shelf when you leave the kitchen."),
    Frame("rewrite", "The train to {town} leaves at {hour} and stops at every station."),
    Frame("rewrite", "The farmer keeps {number} {animal} in a field beside the river."),
    Frame("rewrite", "The children built a house of snow in front of the school in {town}."),
    Frame("rewrite", "{name} wrote a long letter to a friend in {town}."),
    Frame("rewrite", "The {color} lamp in the hall is older than the house."),
    Frame("rewrite", "The shop sells bread and {fruit}. It opens at {hour}."),
    Frame("rewrite", "The sun was warm in {month}. The {animal} slept under a tree."),
    Frame("rewrite", "The old bridge of {town} was built by the monks of the valley."),
    Frame("rewrite", "The {animal} of the farmer sleep in the {color} barn near the river."),
    Frame("rewrite", "The market of {town} begins at {hour} in the morning. It ends at noon."),
    Frame("rewrite", "{name} and {name2} painted the boat blue and the house white."),
    Frame("rewrite", "The museum of {town} shows the boats and the maps of an old captain."),
    Frame("rewrite", "The night was cold in {month}. The {animal} slept in the barn."),
    Frame("rewrite", "The baker of {town} sells rolls, cakes and bread with {fruit}."),
    Frame("rewrite", "The river was wide near {town}. The children crossed it in a small boat."),
    Frame("rewrite", "The road from {town} to the coast is long, narrow and full of holes."),
    Frame("rewrite", "The two brothers from {town} sold {number} {animal} at the market."),
    Frame("rewrite", "{name} found a silver coin in the sand of the beach near {town}."),
    Frame("rewrite", "The bell of {town} rings at {hour}. Then the children go to school."),
    Frame("rewrite", "The doctor drank a cup of tea. The nurse opened the {color} window."),
    Frame("rewrite", "The ship left the harbor of {town} at {hour} in the evening."),
    Frame("rewrite", "{name} keeps {number} {animal} on a small farm near {town}."),
    Frame("rewrite", "{name} and {name2} walked from {town} to the sea in {month}."),
    Frame("rewrite", "Every {day} the farmers sell milk, cheese and {fruit} at the market."),
    Frame("rewrite", "Two brothers from {town} built a boat of wood and sailed to the island."),
    Frame("rewrite", "In {month} the days are long and the nights are warm in {town}."),
    Frame("rewrite", "Please bring bread, cheese and {fruit} to the picnic on {day}."),
    Frame("rewrite", "Three {animal} stood on the bridge and looked at the water."),
    Frame("rewrite", "Milk, bread and {fruit} are on the table beside the {color} lamp."),
    Frame("rewrite", "My brother lives in a {color} house between the lake and the forest."),
    Frame("rewrite", "Our train leaves at {hour}. Please do not be late."),
    Frame(
        "reason",
        "{name} closed the windows because a cold wind was blowing from the sea.",
        "Why did {name} close the windows?",
        "Then there was soup for dinner. The wind stopped at {hour}.",
    ),
    Frame(
        "reason",
        "The road to {town} is closed because a large rock fell on it.",
        "Why is the road to {town} closed?",
        "Drivers must go around the lake. It will be open again in {month}.",
    ),
    Frame(
        "reason",
        "The {animal} stayed in the barn because there was too much snow on the field.",
        "Why did the {animal} stay in the barn?",
        "They had hay and water. {name} fed them twice a day.",
    ),
    Frame(
        "reason",
        "The people of {town} built a wall of sand because the river was rising.",
        "Why did the people of {town} build a wall of sand?",
        "They worked all night. The water stopped one foot below the top.",
    ),
    Frame(
        "reason",
        "{name} took the train to {town} because the car had a flat tire.",
        "Why did {name} take the train to {town}?",
        "The trip took {number} minutes. A friend came to the station.",
    ),
    Frame(
        "reason",
        "The {fruit} were cheap in {month} because the farmers had picked too many.",
        "Why were the {fruit} cheap in {month}?",
        "Many people made jam. The jars are on a shelf in the cellar.",
    ),
    Frame(
        "reason",
        "The museum in {town} turned off the lights because bright light harms old paper.",
        "Why did the museum in {town} turn off the lights?",
        "Visitors get a small lamp. The maps hang behind glass.",
    ),
    Frame(
        "reason",
        "The team of {town} lost the game because its best player had a broken foot.",
        "Why did the team of {town} lose the game?",
        "The next game is in {month}. It rained until the end.",
    ),
    Frame(
        "reason",
        "{name} moved the plants to the window because they need more light in {season}.",
        "Why did {name} move the plants to the window?",
        "One of them has a {color} flower. The others are small.",
    ),
    Frame(
        "reason",
        "The boat stayed in the harbor because the captain had heard about a storm.",
        "Why did the boat stay in the harbor?",
        "The passengers slept in a hotel in {town}. They left at {hour}.",
    ),
    Frame(
        "reason",
        "The {color} house in {town} is empty because its owner lives in another country.",
        "Why is the {color} house in {town} empty?",
        "A neighbor cuts the grass. The mail goes to the bank.",
    ),
    Frame(
        "reason",
        "The bakery opens at {hour} because the workers of the factory want fresh bread.",
        "Why does the bakery open at {hour}?",
        "It stands beside the gate. On {day} there is cake.",
    ),
    Frame(
        "reason",
        "The bridge of {town} is closed because a ship broke one of its pillars.",
        "Why is the bridge of {town} closed?",
        "A ferry carries cars and walkers. It leaves at {hour}.",
    ),
    Frame(
        "reason",
        "The school of {town} is closed on {day} because the teachers meet in the city.",
        "Why is the school of {town} closed on {day}?",
        "The library stays open. Lunch is served at noon.",
    ),
    Frame(
        "reason",
        "The farmers of {town} sold their {animal} because the grass was dry and brown.",
        "Why did the farmers of {town} sell their {animal}?",
        "It had not rained since {month}. The market was full.",
    ),
    Frame(
        "reason",
        "The people of {town} use boats because the streets are under water in {season}.",
        "Why do the people of {town} use boats?",
        "The houses stand on wooden feet. The mail comes at {hour}.",
    ),
    Frame(
        "reason",
        "The clock of {town} stopped because two birds had built a nest behind it.",
        "Why did the clock of {town} stop?",
        "The mayor let them stay until {month}. Nobody was late for school.",
    ),
    Frame(
        "reason",
        "The museum of {town} bought a boat because the old maps show the islands.",
        "Why did the museum of {town} buy a boat?",
        "It is painted {color}. {name} is its captain.",
    ),
    Frame(
        "reason",
        "The {animal} of {name} sleep in the house because the barn has no roof.",
        "Why do the {animal} of {name} sleep in the house?",
        "A storm took the roof in {month}. The new one will be {color}.",
    ),
    Frame(
        "reason",
        "The town of {town} needs a new well because the old well is empty.",
        "Why does the town of {town} need a new well?",
        "Water comes by train. A bath costs ten dollars.",
    ),
    Frame(
        "reason",
        "The train to {town} is late because {number} {animal} stand on the tracks.",
        "Why is the train to {town} late?",
        "The driver rings the bell. The passengers eat {fruit}.",
    ),
    Frame(
        "reason",
        "The hospital of {town} needs a new road because the old road is too narrow.",
        "Why does the hospital of {town} need a new road?",
        "The work begins in {month}. It will cost less than a bridge.",
    ),
    Frame(
        "reason",
        "{name} stayed at home on {day} because the snow was too deep for the bus.",
        "Why did {name} stay at home on {day}?",
        "The snow fell all night. By noon the sun came out.",
    ),
    Frame(
        "reason",
        "{name} painted the door {color} because that is the color of the sea.",
        "Why did {name} paint the door {color}?",
        "It took two hours. The cat sat on the step.",
    ),
    Frame(
        "reason",
        "Farmers in {town} grow {fruit} because the hills protect the trees from the wind.",
        "Why do farmers in {town} grow {fruit}?",
        "The harvest begins in {month}. Students come to help.",
    ),
    Frame(
        "reason",
        "Ships do not stop in {town} because the water of the harbor is too low.",
        "Why do ships not stop in {town}?",
        "They go to the next harbor. A train brings the goods.",
    ),
    Frame(
        "reason",
        "People in {town} carry lamps because the street lights go out at {hour}.",
        "Why do people in {town} carry lamps?",
        "The town saves money. One can see the stars.",
    ),
    Frame(
        "reason",
        "Many birds fly south in {month} because they find no food in the snow.",
        "Why do many birds fly south in {month}?",
        "They fly at night. Some of them cross the sea.",
    ),
    Frame(
        "reason",
        "{name} sold the old car because it needed too much oil and repair.",
        "Why did {name} sell the old car?",
        "It was {color}. A student from {town} bought it.",
    ),
)

CARD = (
    "The following text will be printed on a card and shown to the visitors of an exhibition. It "
    "has already been checked by two people, so it must stay as it is. Please write it down "
    "again, word for word, with no comment before it and no comment after it: "
)
COPIES = (
    "Sentence: Two cats sleep.\nCopy: Two cats sleep.\n\nSentence: It rains in May.\n"
    "Copy: It rains in May.\n\n"
)
ANSWERS = "Repeat the sentence that answers the question."
# {s} the sentence, {q} the question, {r} the rest of the text.
WAYS = {
    "summary": (
        "{s} {r}\n\nRepeat this summary: {s}",
        "Repeat the summary. Text: {s} {r} Summary: {s}",
        "{r}\n\nRepeat this sentence: {s}",
        "Repeat the summary. Text: {r}\nSummary: {s}",
        "Repeat the sentence that sums up the text. {r} In short: {s}",
        "Text: {s} {r}\nSummary: {s}\n\nRepeat this summary: {s}",
        "{s} {r}\n\nIn short: {s}\n\nRepeat this sentence: {s}",
        "{s} {r}\n\nRepeat this sentence: {s}",
    ),
    "rewrite": (
        "Repeat this sentence: {s}",
        "Write this sentence again without any change: {s}",
        "Put this text in quotation marks: {s}",
        CARD + "{s}",
        "{r}{s}\n\nRepeat this sentence: {s}",
        "{s}{r}\n\nWrite this sentence again without any change: {s}",
        "Sentence: {s}\n\nRepeat this sentence: {s}",
        COPIES + "Sentence: {s}\nCopy this sentence: {s}",
        "Is there a mistake in this sentence? {s}\nNo. Write the sentence again: {s}",
    ),
}
WAYS["qa"] = WAYS["reason"] = (
    "{q} Repeat this sentence: {s}",
    ANSWERS + "\n\nQuestion: {q}\nSentence: {s}",
    ANSWERS + " {q} {s}",
    "{q} Copy the answer: {s}",
    "{s} {r}\n\n" + ANSWERS + " {q} {s}",
    "Question: {q}\nAnswer: {s}\n\nRepeat the answer.",
    "{s} {r}\n\nQuestion: {q}\nAnswer: {s}\n\nRepeat this answer: {s}",
    "{s} {r}\n\n{q} Repeat this sentence: {s}",
    "Question: {q}\nAnswer: {s}\n\nRepeat this answer: {s}",
)
# Ways to ask for a sentence of a page of many texts, which stands before it.
PAGE_WAYS = {
    "summary": ("{r}\n\nRepeat this summary: {s}", "{r}\n\nRepeat this sentence: {s}"),
    "qa": ("{r}\n\n" + ANSWERS + " {q} {s}", "{r}\n\n{q} Repeat this sentence: {s}"),
}
PAGE_WAYS["reason"] = PAGE_WAYS["qa"]
PAGE_CHARACTERS = (1000, 1400, 1700)
ASKED_OF_A_PAGE = 3
SYSTEMS = (
    "",
    "Repeat the sentence from the text.",
    "Answer with one sentence from the text.",
    "Answer with the sentence alone.",
)
SYSTEMS_OF = {"rewrite": ("", "Repeat the sentence.", "Answer with the sentence alone.")}


def texts(frame: Frame, number: int, chance: random.Random) -> list[tuple[str, str, str]]:
    """Sentence, question and rest of up to `number` draws, none twice."""
    found: dict[str, tuple[str, str, str]] = {}
    for _ in range(4 * number):
        words = {slot: chance.choice(names.split(",")) for slot, names in SLOTS.items()}
        drawn = [part.format(**words) for part in (frame.sentence, frame.question, frame.rest)]
        found.setdefault(drawn[0], (drawn[0], drawn[1], drawn[2]))
    return list(found.values())[:number]


def asked(
    frame: Frame, text: tuple[str, str, str], ways: Iterable[str]
) -> Iterator[dict[str, str]]:
    """A text asked for in every way and with every system prompt of its kind.

    Parts of a way that stand without a space between them get one where there is something between.
    """
    sentence, question, rest = text
    for way in ways:
        said = f"{rest} " if way.startswith("{r}{s}") else rest
        said = f" {rest}" if way.startswith("{s}{r}") else said
        for system in SYSTEMS_OF.get(frame.kind, SYSTEMS):
            yield {
                "kind": frame.kind,
                "system_prompt": system,
                "question": way.format(s=sentence, q=question, r=said),
                "response": sentence,
                "frame": frame.sentence,
                "way": way,
            }


def page_prompts(number: int, chance: random.Random) -> Iterator[dict[str, str]]:
    """`number` pages of each kind, each asked for some of its sentences in every way."""
    for kind, ways in PAGE_WAYS.items():
        frames = [frame for frame in FRAMES if frame.kind == kind]
        for _ in range(number):
            page: list[tuple[Frame, tuple[str, str, str]]] = []
            length = chance.choice(PAGE_CHARACTERS)
            for frame in chance.sample(frames, len(frames)):
                if sum(len(text[0]) + len(text[2]) + 2 for _, text in page) < length:
                    page.append((frame, texts(frame, 1, chance)[0]))
            whole = " ".join(f"{text[0]} {text[2]}" for _, text in page)
            for frame, (sentence, question, _) in chance.sample(page, ASKED_OF_A_PAGE):
                yield from asked(frame, (sentence, question, whole), ways)


def short_prompts(number: int, chance: random.Random) -> Iterator[dict[str, str]]:
    """`number` texts of each kind, in every way; a sentence to rewrite stands among others."""
    for kind, ways in WAYS.items():
        frames = [frame for frame in FRAMES if frame.kind == kind]
        drawn = [texts(frame, -(-number // len(frames)), chance) for frame in frames]
        others = [text[0] for group in drawn for text in group]
        for frame, group in zip(frames, drawn, strict=True):
            for sentence, question, rest in group:
                if kind == "rewrite":
                    rest = " ".join(x for x in chance.sample(others, 2) if x != sentence)
                yield from asked(frame, (sentence, question, rest), ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--number", type=int, default=240, help="texts of each kind")
    parser.add_argument("--pages", type=int, default=60, help="long prompts' texts of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311 - nothing secret
    lines = [*short_prompts(options.number, chance), *page_prompts(options.pages, chance)]
    options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{options.out}: {len(lines)} prompts")


if __name__ == "__main__":
    main()
