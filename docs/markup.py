"Quarto's syntax, in which notebooks are written, as MyST's, which Sphinx reads; figures and tables of stored outputs"
import re
from itertools import cycle
from pathlib import Path
from base64 import b64decode
from io import BytesIO
from PIL import Image
from fastcore.nbio import mk_cell
from nbdev.config import nbpath2html
from mentions import papers,papers_html

kinds = 'note','tip','warning','important','caution'
_call = re.compile(r'^(:{3,})\s*\{\.callout-(\w+)([^}]*)\}\s*\n+(?:#+\s+(.*)\n)?', re.M)
def callout(m):
    if m[2] not in kinds: raise ValueError(f'callout-{m[2]} is none of {", ".join(kinds)}')
    t = m[4] or (re.search(r'title="(.*?)"', m[3]) or [0,''])[1]
    cls = f'\n:class: {m[2]}'+(' dropdown' if 'collapse="true"' in m[3] else '')
    return f'{m[1]}{{admonition}} {t}{cls}\n' if t else f'{m[1]}{{{m[2]}}}\n'

_tabs = re.compile(r'^:::\s*\{\.panel-tabset[^}]*\}\s*\n(.*?)^:::[ \t]*$', re.M|re.S)
def tabset(m):
    _,*parts = re.split(r'^#+\s+(.*)\n', m[1], flags=re.M)
    items = [f':::::{{tab-item}} {t}\n{b.strip()}\n:::::' for t,b in zip(parts[::2],parts[1::2])]
    return '\n'.join(['::::::{tab-set}', *items, '::::::'])

_doors = re.compile(r'^:::\s*\{\.doors\}\s*\n(.*?)^:::[ \t]*$', re.M|re.S)
_door = re.compile(r'^- \*\*\[(.*?)\]\((.*?)\.ipynb\)\*\*\s*(.*?)(?=^- |\Z)', re.M|re.S)
def doors(m):
    "A list of links in bold as cards below each other"
    def card(d):
        to = nbpath2html(Path(d[2]+'.ipynb')).with_suffix('').as_posix()
        return f':::{{grid-item-card}} {d[1]}\n:link: /{to}\n:link-type: doc\n\n{d[3].strip()}\n:::'
    head = ['::::{grid} 1',':gutter: 2',':class-container: doors','']
    return '\n'.join([*head, *[card(d) for d in _door.finditer(m[1])], '::::'])

_svgs = re.compile(r'!\[([^\]]*)\]\(([\w/]+\.svg)\)')
def inline(s, here):
    "Drawings as part of the page, in the colours of its text"
    def svg(m):
        t = re.sub(r'<style>.*?</style>', '', (here/m[2]).read_text(encoding='utf-8'), flags=re.S)
        return t.replace('<svg ', f'<svg role="img" aria-label="{m[1]}" ', 1).replace('\n','')
    def row(o): return f'<p class="drawings">{_svgs.sub(svg, o)}</p>' if _svgs.match(o) else o
    return '\n\n'.join(map(row, s.split('\n\n')))

_code = re.compile(r'^(?:`{3,}|~{3,}).*?^(?:`{3,}|~{3,})[ \t]*$|`[^`\n]*`', re.M|re.S)
_apart = re.compile(r'(?<=\d)\s(?=%)|(?<=\d)\s(?=±\s?[\d.])|(?<=±)\s(?=[\d.])')
def units(s):
    "Text whose figures stay in one line with their unit, or with half of their interval; code as it is"
    out,at = [],0
    for m in _code.finditer(s):
        out += [_apart.sub('\xa0', s[at:m.start()]),m[0]]
        at = m.end()
    return ''.join([*out,_apart.sub('\xa0', s[at:])])

_nbl = re.compile(r'\]\(([^)\s]*?)([^/)\s]+\.ipynb)(#[^)]*)?\)')
def markdown(s, here):
    "A markdown cell of a notebook in folder `here`"
    def link(m):
        if not (here/m[1]/m[2]).exists(): raise FileNotFoundError(f'a link leads to {m[1]}{m[2]}, which is not there')
        return f"]({m[1]}{nbpath2html(m[2]).with_suffix('.ipynb')}{m[3] or ''})"
    s = _doors.sub(doors, _tabs.sub(tabset, inline(s, here)))
    s = _nbl.sub(link, _call.sub(callout, s))
    m = re.search(r'^:{3,}\s*\{\.[^}]*\}', s, re.M)
    if m: raise ValueError(f'docs/markup.py has no translation of {m[0]}')
    return papers(units(s))

def ground(o):
    """How a figure meets a dark page: drawn on nothing, on paper (shown inverted), or neither; and whether a phone is too narrow:
    for panels side by side, and for a board of several rows, which is broader than the 46rem that a wide figure keeps"""
    im = Image.open(BytesIO(b64decode(''.join(o['data']['image/png'])))).convert('RGBA')
    *rgb,a = im.getpixel((0,0))
    shown = o.get('metadata',{}).get('image/png',{}).get('width', im.width)
    wide = im.width>1.8*im.height or shown>46*16
    return ('fig-clear' if a==0 else 'fig-paper' if min(rgb)>240 else 'fig-dark')+' fig-wide'*wide

_head = re.compile(r'<thead>\s*<tr[^>]*>(.*?)</tr>\s*<tr>(.*?)</tr>\s*</thead>', re.S)
def one_head(m):
    "The two rows of a head as one, where the second only names the rows"
    cols,names = (re.findall(r'<th[^>]*>(.*?)</th>', m[i], re.S) for i in (1,2))
    if len(cols)!=len(names) or any(a and b for a,b in zip(cols,names)): return m[0]
    return '<thead><tr>'+''.join(f'<th>{a or b}</th>' for a,b in zip(cols,names))+'</tr></thead>'

_figure = re.compile(r'(?!\d×\d)[-−+<>±≤≥(]?\s*\.?\d.*|n/?an?|none|[-–]?', re.I|re.S)
_parts = re.compile(r'(.*<thead>\s*<tr[^>]*>)(.*?)(</tr>\s*</thead>\s*<tbody>)(.*?)(</tbody>.*)', re.S)
def kind(cells):
    "How a column is marked: long words, which may begin with a figure; words; or nothing if there is a figure among its cells"
    if max(map(len, cells))>24: return ' class="words long"'
    return '' if any(map(_figure.fullmatch, cells)) else ' class="words"'

def words(h):
    "Columns of words, not of figures, marked: they begin at the left, and long ones break on a phone"
    m = _parts.fullmatch(h)
    if not m or '<tr' in m[2]: return h
    rows = [re.findall('<td>(.*?)</td>', r, re.S) for r in m[4].split('<tr')[1:]]
    if len({*map(len, rows)})!=1 or not rows[0] or m[4].count('<td')!=len(rows)*len(rows[0]): return h
    kinds = [*map(kind, zip(*rows))]
    ths,tds = iter(['']*(m[2].count('<th')-len(kinds))+kinds),cycle(kinds)
    head = re.sub(r'<th\b', lambda _: '<th'+next(ths), m[2])
    return m[1]+head+m[3]+re.sub('<td>', lambda _: f'<td{next(tds)}>', m[4])+m[5]

_one = re.compile(r'<table\b.*?</table>', re.S)
def table(h): return _one.sub(lambda m: _table(m[0]), h) if _one.search(h) else _table(h)

def _table(h):
    "A table with one head, whose intervals do not break over lines, marked where its rows are just numbered or verdicts"
    h = words(papers_html(_head.sub(one_head, h)))
    if re.search('<th[^>]*>verdict</th>', h): h = h.replace('class="dataframe"', 'class="dataframe verdicts"')
    h = re.sub(r'(?<=[>( ])-(?=\.?\d)', '−', h)
    h = re.sub(r'\([−\d.]+ to [−\d.]+\)|&lt; \.?\d|\d (%|pp|×)|± [\d.]|\d ±', lambda m: m[0].replace(' ','\xa0'), h)
    rows = re.findall(r'<th[^>]*>(.*?)</th>', h.rpartition('<tbody')[2])
    numbered = rows and all(re.fullmatch(r'\d+',r) for r in rows)
    return h.replace('class="dataframe', 'class="dataframe numbered') if numbered else h

_dir = re.compile(r'^#\|\s*([\w-]+)\s*:\s*(.*)\n?', re.M)
def directives(s): return {k:v.strip().strip('"') for k,v in _dir.findall(s)}

def image(outputs, d):
    "What MyST-NB is told about a cell's figure"
    pngs = [o for o in outputs if 'image/png' in o.get('data',{})]
    if not pngs: return {}
    res = dict(alt=d.get('fig-alt') or d.get('fig-cap') or 'Figure drawn by the code above', classes=ground(pngs[0]))
    if wh := pngs[0].get('metadata',{}).get('image/png'): res['width'] = f"{wh['width']}px"
    return dict(image=res)

def in_columns(outputs):
    "Does a cell print text in columns, in lines that fit a page? On a phone those scroll, for broken they could not be read"
    lines = [l for o in outputs for l in ''.join(o.get('text','')).splitlines()]
    return sum(bool(re.search(r'\S {2,}\S', l)) for l in lines)>1 and max(map(len, lines))<=105

def tags_of(d, source, fold, columns=False):
    "MyST-NB's tags: what of a cell the page leaves out, or folds; and text in columns"
    silent = d.get('echo')=='false' or not source
    has = {'remove-input':silent, 'remove-output':d.get('output')=='false', 'hide-input':fold, 'columns':columns}
    return [t for t,on in has.items() if on]+[d[k] for k in ('tag',) if k in d]

def card_of(c):
    "The cell of a `show_doc`: hoisted, so that Sphinx sees the directive as part of the page"
    parts = [''.join(o['data']['text/markdown']) for o in c.outputs if 'data' in o]
    return mk_cell(''.join(parts), 'markdown')

def code(c):
    "A code cell as MyST-NB wants it; None where the page leaves it out"
    d = directives(c.source)
    c.source = _dir.sub('', c.source).strip()
    if d.get('include')=='false': return None
    if re.match(r'show_doc', c.source): return card_of(c)
    for o in c.outputs:
        if h := o.get('data',{}).get('text/html'): o['data']['text/html'] = table(''.join(h))
        if h := o.get('data',{}).get('text/markdown'): o['data']['text/markdown'] = units(''.join(h))
    fold = d.get('code-fold','false') not in ('false','show')
    said = d.get('code-summary','Code')
    my = dict(code_prompt_show=said, code_prompt_hide=said) if fold else {}
    if 'fig-cap' in d: my['figure'] = dict(caption=units(d['fig-cap']))
    my.update(image(c.outputs, d))
    c.metadata.pop('execution',None)
    c.metadata.update(tags=tags_of(d, c.source, fold, in_columns(c.outputs)), **({'mystnb':my} if my else {}))
    return c
