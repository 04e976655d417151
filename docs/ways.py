"The ways through the site: groups of the sidebar, cards, what a page costs; from pages.txt"
import os,re
from pathlib import Path
from typing import NamedTuple
from nbdev.config import nbpath2html
from symbols import cfg

class Line(NamedTuple):
    "A page in pages.txt"
    stem:str # Its notebook, below nbs/
    cost:str
    name:str # In the sidebar, where it is another one than its title

def parse(text):
    "Group → what it is for, and its lines"
    groups = {}
    for l in text.splitlines():
        if m := re.match(r'## (\w+): (.*)', l): groups[m[1]] = (m[2],rows := [])
        elif l.strip() and l[0]!='#': rows.append(Line(*[o.strip() for o in (l+'||').split('|')[:3]]))
    return groups

groups = parse(Path(__file__).with_name('pages.txt').read_text(encoding='utf-8'))
lines = {o.stem:o for _,rows in groups.values() for o in rows}
last = {'tutorials':'Practice', 'papers':'Research'}      # where a notebook stands that has no line

# The storeys of the library, by the tens digit of a room's number: page, title, what they are
storeys = {
    0: ('values','Values','what a lottery works with; they know no Learner'),
    1: ('one_lottery','One lottery','the callback, the loop, the files of a run'),
    2: ('after','What is done with it','masks that are learned, transfer, shrinking, deployment, analysis'),
    3: ('laboratory','The laboratory',"data, nets, controls, the papers' experiments"),
    4: ('seen','What is seen','plots, pictures, the command line')}

def stem(p): return p.relative_to(cfg.nbs_path).with_suffix('').as_posix()
def docname(p): return nbpath2html(p.relative_to(cfg.nbs_path)).with_suffix('').as_posix()
def storey(p):
    "The storey of a room; None for what is none"
    return int(p.stem[:2])//10 if p.stem[:2].isdigit() and p.parent==cfg.nbs_path and int(p.stem[:2])<90 else None

def members(nbs):
    "Group → its notebooks, in the order of pages.txt, and then those that have no line"
    by,res = {stem(p):p for p in nbs},{}
    for k,(_,rows) in groups.items():
        res[k] = [by[o.stem] for o in rows if o.stem in by]
        res[k] += [p for p in nbs if stem(p) not in lines and last.get(p.parent.name)==k]
    return res

def rooms(nbs):
    "Storey → all its rooms"
    return {k:[p for p in nbs if storey(p)==k] for k in storeys}

def toctree(caption, entries, hidden=True):
    head = ['```{toctree}', *[':hidden:']*hidden, *[f':caption: {caption}']*bool(caption)]
    return '\n'.join([*head, '', *entries, '```'])

def entry(p, titles, twice):
    "A page in the sidebar, with a name of its own where it has one or where two pages have the same title"
    u,t,line = docname(p),titles[p],lines.get(stem(p))
    if line and line.name: return f'{line.name} </{u}>'
    if '/' not in u or t not in twice: return f'/{u}'
    kind = dict(tutorials='guide', papers='paper').get(p.parent.name, p.parent.name)
    return f'{t} ({kind}) </{u}>'

def card(p, title, about):
    "A card: title, one line, what it costs"
    cost = lines[stem(p)].cost if stem(p) in lines else ''
    foot = f'\n:::{{card-footer}}\n{cost}\n:::\n' if cost else ''
    return f"::::{{grid-item-card}} {title}\n:link: /{docname(p)}\n:link-type: doc\n\n{about}\n{foot}::::"

def cards(ps, titles, abouts):
    return '\n'.join([':::::{grid} 1 2 2 3',':gutter: 2',':class-container: ways','',
                      *[card(p, titles[p], abouts[p]) for p in ps],':::::'])

def sentence(s): return s[0].upper()+s[1:]+'.'*(s[-1] not in '.?!')

def contents(nbs, titles, abouts):
    "The page of all pages, as cards"
    parts = ['# All pages\n\n:::{div} lead\nGuides, papers and library, by what you want to do\n:::']
    for k,ps in members(nbs).items():
        parts.append(f'## {k}\n\n{sentence(groups[k][0])}\n\n{cards(ps, titles, abouts)}')
    for k,ps in rooms(nbs).items():
        parts.append(f'### {storeys[k][1]}\n\n{sentence(storeys[k][2])}\n\n{cards(ps, titles, abouts)}')
    return '\n\n'.join(parts)+'\n'

def storey_page(k, ps, titles, abouts, twice):
    "The page of a storey: cards, and its rooms in the sidebar"
    inside = [entry(p, titles, twice) for p in ps if stem(p) not in lines]
    head = f'# {storeys[k][1]}\n\n:::{{div}} lead\n{storeys[k][2][0].upper()+storeys[k][2][1:]}\n:::'
    return '\n\n'.join([head, cards(ps, titles, abouts), toctree('', inside)])+'\n'

def sidebar(nbs, titles, twice, extra):
    "The toctrees of the sidebar"
    for k,ps in members(nbs).items():
        entries = [entry(p, titles, twice) for p in ps]
        if k=='Start': entries.insert(0, '/contents')
        if k=='Library': entries[2:2] = [f'/library/{o[0]}' for o in storeys.values()]
        yield toctree(k, entries)
    yield toctree('Project', extra)

def source(p):
    "A notebook's address in the repository that `GIT_URL` or pyproject.toml names; '' where neither does: none is made up"
    url = (os.environ.get('GIT_URL') or cfg.get('git_url') or '').rstrip('/').removesuffix('.git')
    if url and not re.match(r'https?://[^/]+/', url):
        raise ValueError(f"the repository {url!r} is no address of a web page: give `GIT_URL`, or `Repository` below "
                         "[project.urls] in pyproject.toml, as in https://host/owner/name")
    return f'{url}/blob/{cfg.branch}/{p.relative_to(cfg.config_path).as_posix()}' if url else ''

def told(p):
    "The line on top of a page: what it costs, its notebook, its source"
    cost = lines[stem(p)].cost if stem(p) in lines else ''
    up = '../'*docname(p).count('/')
    said = f'Runs in {cost}' if cost[:1].isdigit() else cost[:1].upper()+cost[1:]
    parts = [re.sub('`(.*?)`', r'<code class="literal">\1</code>', said)]
    parts += [f'<a href="{up}notebooks/{stem(p)}.ipynb" download>Notebook</a>']
    if url := source(p): parts.append(f'<a href="{url}">Source</a>')
    return f'<p class="told">{" · ".join(o for o in parts if o)}</p>'
