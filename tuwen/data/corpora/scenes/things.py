"""What a scene can hold: its names, Chinese measure word and drawing, and what is held out of training.

Chosen so that no name covers another thing of the table ("bird" would be true of an owl, 汽车 of a bus): what a
caption says is then decided by the table alone. English plurals, Chinese names and measure words are ours; names in
the other languages come from the `emoji` package (Unicode CLDR).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tuwen.data import draws

# English, plural, emoji, Chinese, measure word
TABLE = """
dog,dogs,🐕,狗,条
cat,cats,🐈,猫,只
monkey,monkeys,🐒,猴子,只
fox,foxes,🦊,狐狸,只
lion,lions,🦁,狮子,头
tiger,tigers,🐅,老虎,只
horse,horses,🐎,马,匹
zebra,zebras,🦓,斑马,匹
deer,deer,🦌,鹿,只
cow,cows,🐄,奶牛,头
pig,pigs,🐖,猪,头
sheep,sheep,🐑,绵羊,只
camel,camels,🐫,骆驼,头
giraffe,giraffes,🦒,长颈鹿,只
elephant,elephants,🐘,大象,头
mouse,mice,🐁,老鼠,只
rabbit,rabbits,🐇,兔子,只
hedgehog,hedgehogs,🦔,刺猬,只
bat,bats,🦇,蝙蝠,只
koala,koalas,🐨,考拉,只
panda,pandas,🐼,熊猫,只
kangaroo,kangaroos,🦘,袋鼠,只
rooster,roosters,🐓,公鸡,只
penguin,penguins,🐧,企鹅,只
duck,ducks,🦆,鸭子,只
swan,swans,🦢,天鹅,只
owl,owls,🦉,猫头鹰,只
flamingo,flamingos,🦩,火烈鸟,只
peacock,peacocks,🦚,孔雀,只
parrot,parrots,🦜,鹦鹉,只
frog,frogs,🐸,青蛙,只
crocodile,crocodiles,🐊,鳄鱼,条
turtle,turtles,🐢,乌龟,只
snake,snakes,🐍,蛇,条
whale,whales,🐳,鲸鱼,头
dolphin,dolphins,🐬,海豚,只
shark,sharks,🦈,鲨鱼,条
octopus,octopuses,🐙,章鱼,只
crab,crabs,🦀,螃蟹,只
lobster,lobsters,🦞,龙虾,只
snail,snails,🐌,蜗牛,只
butterfly,butterflies,🦋,蝴蝶,只
bee,bees,🐝,蜜蜂,只
ladybug,ladybugs,🐞,瓢虫,只
spider,spiders,🕷️,蜘蛛,只
dinosaur,dinosaurs,🦕,恐龙,只
unicorn,unicorns,🦄,独角兽,只
rose,roses,🌹,玫瑰,朵
sunflower,sunflowers,🌻,向日葵,朵
tulip,tulips,🌷,郁金香,朵
cactus,cactuses,🌵,仙人掌,棵
palm tree,palm trees,🌴,棕榈树,棵
mushroom,mushrooms,🍄,蘑菇,个
maple leaf,maple leaves,🍁,枫叶,片
tangerine,tangerines,🍊,橘子,个
lemon,lemons,🍋,柠檬,个
banana,bananas,🍌,香蕉,根
pineapple,pineapples,🍍,菠萝,个
apple,apples,🍎,苹果,个
pear,pears,🍐,梨,个
strawberry,strawberries,🍓,草莓,颗
tomato,tomatoes,🍅,西红柿,个
avocado,avocados,🥑,牛油果,个
eggplant,eggplants,🍆,茄子,个
carrot,carrots,🥕,胡萝卜,根
onion,onions,🧅,洋葱,个
croissant,croissants,🥐,牛角面包,个
hamburger,hamburgers,🍔,汉堡,个
hot dog,hot dogs,🌭,热狗,个
doughnut,doughnuts,🍩,甜甜圈,个
birthday cake,birthday cakes,🎂,生日蛋糕,个
lollipop,lollipops,🍭,棒棒糖,根
teapot,teapots,🫖,茶壶,把
car,cars,🚗,小轿车,辆
bus,buses,🚌,公交车,辆
ambulance,ambulances,🚑,救护车,辆
fire engine,fire engines,🚒,消防车,辆
tractor,tractors,🚜,拖拉机,辆
motorcycle,motorcycles,🏍️,摩托车,辆
bicycle,bicycles,🚲,自行车,辆
train,trains,🚂,火车,列
airplane,airplanes,✈️,飞机,架
rocket,rockets,🚀,火箭,枚
sailboat,sailboats,⛵,帆船,艘
skateboard,skateboards,🛹,滑板,块
umbrella,umbrellas,☂️,雨伞,把
alarm clock,alarm clocks,⏰,闹钟,个
guitar,guitars,🎸,吉他,把
violin,violins,🎻,小提琴,把
trumpet,trumpets,🎺,小号,把
drum,drums,🥁,鼓,面
balloon,balloons,🎈,气球,个
gift box,gift boxes,🎁,礼物盒,个
trophy,trophies,🏆,奖杯,座
soccer ball,soccer balls,⚽,足球,个
basketball,basketballs,🏀,篮球,个
teddy bear,teddy bears,🧸,泰迪熊,只
crown,crowns,👑,皇冠,顶
top hat,top hats,🎩,礼帽,顶
backpack,backpacks,🎒,背包,个
T-shirt,T-shirts,👕,T恤,件
dress,dresses,👗,连衣裙,条
key,keys,🔑,钥匙,把
hammer,hammers,🔨,锤子,把
axe,axes,🪓,斧头,把
magnet,magnets,🧲,磁铁,块
light bulb,light bulbs,💡,灯泡,个
candle,candles,🕯️,蜡烛,根
camera,cameras,📷,照相机,台
television,televisions,📺,电视机,台
phone,phones,📱,手机,部
pencil,pencils,✏️,铅笔,支
bell,bells,🔔,铃铛,个
chair,chairs,🪑,椅子,把
house,houses,🏠,房子,座
castle,castles,🏰,城堡,座
anchor,anchors,⚓,船锚,个
snowman,snowmen,⛄,雪人,个
bomb,bombs,💣,炸弹,颗
"""

COLOURS = {  # name: Chinese name, red, green, blue
    "red": ("红色", 178, 52, 48),
    "yellow": ("黄色", 222, 190, 62),
    "green": ("绿色", 66, 138, 74),
    "blue": ("蓝色", 48, 70, 168),
    "purple": ("紫色", 120, 66, 158),
    "pink": ("粉色", 222, 148, 178),
    "gray": ("灰色", 132, 132, 132),
    "white": ("白色", 224, 224, 224),
}

# never drawn in training: these in val, those in test
HELD_OUT = {"val": ("deer", "pear", "bell", "sailboat"), "test": ("koala", "lemon", "trumpet", "rocket")}


@dataclass(frozen=True)
class Thing:
    """One entry of the table. `name` is its English singular and its key everywhere."""

    name: str
    plural: str
    emoji: str
    chinese: str
    measure: str


THINGS = {row.split(",")[0]: Thing(*row.split(",")) for row in TABLE.strip().splitlines()}
NAMES = tuple(THINGS)
INDEX = {name: number for number, name in enumerate(NAMES)}


class ThingGroup(NamedTuple):
    """What things are called together."""

    en: str
    zh: str


@cache
def groups() -> dict[str, ThingGroup]:
    """The group of every thing, as the lexicon of scenes has it."""
    path = Path(__file__).parents[2] / "lexicons" / "scenes.tsv"
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    facts = {(head, relation): tail for head, relation, tail in lines}
    of = {head: tail for (head, relation), tail in facts.items() if relation == "is a"}
    return {name: ThingGroup(*(facts[of[name], f"name:{language}"] for language in ("en", "zh"))) for name in NAMES}


COMMON = tuple(name for name in NAMES if name not in HELD_OUT["val"] + HELD_OUT["test"])
OTHER_LANGUAGES = ("ja", "ko", "de", "fr", "es", "it", "pt", "ru", "tr", "ar", "fa", "id")


@cache
def held_pair(a: str, b: str) -> str:
    """The split that alone may hold things `a` and `b` together ("val", "test"), "" for any split."""
    share = (draws.key("scenes pair", *sorted((a, b))) & (2**32 - 1)) / 2**32
    return "test" if share < 0.08 else "val" if share < 0.12 else ""


# names of the package that say more than the drawing ("fox face"), or other than we mean
_NAMED_BY = {"whale": "🐋", "train": "🚆", "snowman": "☃️"}
_FOREIGN = {
    "fox": {"ja": "キツネ", "ko": "여우", "pt": "raposa", "ru": "лиса", "ar": "ثعلب"},
    "lion": {"ja": "ライオン", "ko": "사자", "fr": "lion", "pt": "leão", "ru": "лев", "ar": "أسد"},
    "koala": {"ru": "коала", "ar": "كوالا"},
    "panda": {"ja": "パンダ", "ko": "판다", "pt": "panda", "ru": "панда", "ar": "باندا"},
    "frog": {"ja": "カエル", "ko": "개구리", "ru": "лягушка", "ar": "ضفدع"},
    "unicorn": {"ja": "ユニコーン", "ko": "유니콘", "pt": "unicórnio", "ru": "единорог", "ar": "أحادي القرن"},
    "camel": {
        "ja": "ラクダ",
        "ko": "낙타",
        "pt": "camelo",
        "ru": "верблюд",
        "tr": "deve",
        "ar": "جمل",
        "fa": "شتر",
        "id": "unta",
    },
    "apple": {
        **{"ja": "リンゴ", "ko": "사과", "de": "apfel", "fr": "pomme", "es": "manzana", "it": "mela"},
        **{"pt": "maçã", "ru": "яблоко", "tr": "elma", "ar": "تفاحة", "fa": "سیب", "id": "apel"},
    },
    "soccer ball": {"ja": "サッカーボール", "ru": "футбольный мяч"},
    "basketball": {"ja": "バスケットボール", "ko": "농구공", "ru": "баскетбольный мяч"},
    "T-shirt": {"ja": "Tシャツ"},
    "magnet": {"ja": "磁石"},
    "snowman": {"ja": "雪だるま", "ko": "눈사람", "de": "schneemann"},
    "umbrella": {"fr": "parapluie"},
    "castle": {"ja": "城", "ko": "성", "es": "castillo"},
    "mushroom": {"de": "pilz"},
}


@cache
def foreign_name(name: str, language: str) -> str:
    """The thing's name in one of OTHER_LANGUAGES, from the emoji package."""
    import emoji
    from emoji import unicode_codes

    unicode_codes.load_from_json(language)
    symbol = _NAMED_BY.get(name, THINGS[name].emoji)
    word = _FOREIGN.get(name, {}).get(language) or emoji.EMOJI_DATA[symbol][language].strip(":").replace("_", " ")
    return "-".join(part.capitalize() for part in word.split("-")) if language == "de" else word
