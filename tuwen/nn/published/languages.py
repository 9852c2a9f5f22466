"""Languages that a published multilingual text encoder is taken to know: those of XLM-R (arXiv 1911.02116 [mem])."""

_CODES = (
    "en zh de fr es it pt nl ru ja ko ar af am as az be bg bn br bs ca cs cy da el eo et eu fa fi fy ga gd gl gu ha he "
    "hi hr hu hy id is jv ka kk km kn ku ky la lo lt lv mg mk ml mn mr ms my ne no om or pa pl ps ro sa sd si sk sl so "
    "sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi"
)
LANGUAGES = tuple(_CODES.split())
