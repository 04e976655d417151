"Build the site: stage nbs/ as MyST notebooks through nbdev's own processors, run Sphinx over them, then check every link and image"
import ast,inspect,os,re,shutil,subprocess,sys,tokenize
from base64 import b64decode
from collections import Counter
from dataclasses import is_dataclass
from html.parser import HTMLParser
from importlib import import_module
from io import BytesIO
from itertools import groupby,takewhile
from pathlib import Path
from urllib.parse import unquote,urldefrag
from fastcore.nbio import read_nb,write_nb,mk_cell
from fastcore.docments import DocmentText,_type_str
from fastcore.foundation import L
from nbdev import showdoc
from nbdev.config import get_config,nbpath2html
from nbdev.doclinks import NbdevLookup,nbglob,patch_name
from nbdev.processors import FilterDefaults
import nbdev.processors as procs

here = Path(__file__).resolve().parent
os.chdir(here.parent)
sys.path.insert(0, str(here.parent))     # this checkout, whatever is installed
cfg = get_config()
lib,src,out = cfg.lib_name, cfg.doc_path/'src', Path(os.environ.get('OUT', cfg.doc_path/'html')).resolve()

# --- Symbols: those that nbdev indexed, by full name and by name within their module, and those that are public

_defs = ast.FunctionDef,ast.AsyncFunctionDef,ast.ClassDef
def target(o): return getattr(o.targets[0],'id','') if isinstance(o,ast.Assign) else ''

def public():
    "Full name of each public function, class, method and value of the package, its docstring (of a value: the comment behind or above it), and what it is"
    for p in sorted(cfg.lib_path.glob('[!_]*.py')):
        tree = ast.parse(p.read_text(encoding='utf-8'))
        with open(p,'rb') as f: notes = {o.start[0]:o for o in tokenize.tokenize(f.readline) if o.type==tokenize.COMMENT and o.string[:4]!='# %%'}
        al = next((set(ast.literal_eval(o.value)) for o in tree.body if target(o)=='__all__'), set())
        for o in tree.body:
            if isinstance(o,_defs):
                for nm in L(patch_name(o)):
                    if nm in al or ('.' in nm and o.name[0]!='_'): yield f'{lib}.{p.stem}.{nm}', ast.get_docstring(o), 'patch' if '.' in nm else 'def'
                for m in o.body if isinstance(o,ast.ClassDef) and o.name in al else ():
                    if isinstance(m,_defs) and m.name[0]!='_': yield f'{lib}.{p.stem}.{o.name}.{m.name}', ast.get_docstring(m), 'member'
                al.discard(o.name)
            elif (nm := target(o)) in al:
                note = [notes[o.end_lineno]] if o.end_lineno in notes else list(takewhile(lambda n: n and not n.start[1], map(notes.get, range(o.lineno-1,0,-1))))[::-1]
                yield f'{lib}.{p.stem}.{nm}', ' '.join(n.string.lstrip('# ') for n in note), 'data'
                al.discard(nm)
        yield from ((f'{lib}.{p.stem}.{nm}', None, 'data') for nm in sorted(al))
def inherited(n):
    "Has a base class a method of this name?"
    mod,cls,k = n.rsplit('.',2)
    return any(hasattr(b,k) for b in getattr(import_module(mod),cls).__mro__[1:])
shown = set()         # full names that some page has a card for
asked = set()         # names that a notebook shows by hand, anywhere
def missing(): return [n for n,doc,kind in public() if (n not in shown or not doc) and not (kind=='member' and not doc and inherited(n))]

names = list(public())
data = {n:doc for n,doc,kind in names if kind=='data'}
own = {k:s for m,d in NbdevLookup().entries[lib]['syms'].items() for s in [*d, *(n for n in data if n.startswith(m+'.'))] for k in (s, s[len(m)+1:])}
def full(nm): return own.get(nm)
def modname(f): return f.split('.')[1]

# --- Cards: `show_doc` as a directive of Sphinx's Python domain, with a field for each docment

def tidy(o):
    "Drop our own module names, and addresses, from the text of a signature"
    o = re.sub(r"<(?:function|class|bound method|built-in function) '?((?:[\w.]|<\w+>)+)'?(?: at 0x\w+| of .*?)?>", lambda m: m[1].split('.')[-1].replace('<lambda>','lambda'), o)
    o = re.sub(r'\btorch\.nn\.modules\.\w+\.', 'nn.', re.sub(r'\btorch\.(?=Tensor\b)', '', o))
    return re.sub(r'\b(__main__|(?:'+re.escape(lib)+r'|fastai|fastcore)[\w.]*)\.(?=\w)', '', o)

def esc(o):
    "Text whose `<` outside of code is no tag"
    return re.sub(r'(`+)(?:(?!\1).)+\1|<(?!https?:)', lambda m: m[0] if m[1] else r'\<', o, flags=re.S)

def holds(o):
    "What a public value holds: words with their meaning, keys, or items"
    if isinstance(o,dict) and all(isinstance(v,str) for v in o.values()): return '\n'.join(f'- `{k}`: {v}' for k,v in o.items())
    if isinstance(o,dict): return 'Keys: '+', '.join(f'`{k}`' for k in o)
    return '`'+', '.join(getattr(v,'__name__',repr(v)) for v in o)+'`' if isinstance(o,(tuple,list)) else ''

def card(nm, sym, docs, sig=None, dm=None, inner=(), colons=6, opts=()):
    kind = ('property' if isinstance(sym,property) else 'class' if inspect.isclass(sym) else
            'method' if '.' in nm else 'function' if callable(sym) else 'data')
    fields = []
    if sig:
        ps = list(sig.parameters.values())
        if kind=='method' and ps and ps[0].name in ('self','cls'): sig = sig.replace(parameters=ps[1:])
        for p in sig.parameters.values() if kind!='property' else ():
            if not (d := dm.get(p.name,{}).get('docment')): continue
            fields.append(f':param {p.name}: '+esc(' '.join(d.split())))
            if p.annotation is not p.empty: fields.append(f':type {p.name}: {tidy(_type_str(p.annotation))}')
        if d := dm.get('return',{}).get('docment'): fields.append(':returns: '+esc(' '.join(d.split())))
        if kind=='class': sig = sig.replace(return_annotation=sig.empty)
    f,args,opts = full(nm), '' if kind=='property' else tidy(str(sig or '')), list(opts)
    if f: shown.add(f)
    if kind=='property' and sig and sig.return_annotation is not sig.empty: opts.append(f':type: {tidy(_type_str(sig.return_annotation))}')
    opts += [f":module: {f[:-len(nm)-1] if f else getattr(sym,'__module__','')}"] + ([] if f else [':no-index:'])
    c = ':'*colons
    return '\n'.join([f'{c}{{py:{kind}}} {nm}{args}'.replace('\n',' ')]+opts+['', esc(docs or ''), '']+fields+['']+list(inner)+[c])

class SphinxRenderer(showdoc.BasicMarkdownRenderer):
    def __init__(self, sym, name=None, title_level=3, **kw):
        if inspect.isclass(sym) and is_dataclass(sym) and (f := full(sym.__qualname__)): sym = getattr(import_module(f.rpartition('.')[0]), sym.__qualname__)   # its comments are in a file
        self.orig = sym
        super().__init__(sym, name=name, title_level=title_level, **kw)
    def _repr_markdown_(self):
        if (f := full(self.nm)) in data:
            if inspect.isclass(self.orig): return card(self.nm, self.orig, data[f], self.sig, {})
            return card(self.nm, self.orig, f'{data[f]}\n\n{holds(self.orig)}', opts=[f':type: {type(self.orig).__name__}'])
        dm = self.dm.dm if isinstance(self.dm,DocmentText) else {}
        inner = [self.member(k,o) for k,o in vars(self.orig).items()] if inspect.isclass(self.orig) else ()
        return card(self.nm, self.orig, self.docs, self.sig, dm, filter(None,inner))
    def member(self, k, o):
        "The card of a method of the class body that has a docstring of its own, unless a notebook shows it elsewhere"
        nm,fn = f'{self.nm}.{k}', getattr(o,'fget',None) or getattr(o,'__func__',o)
        if k[0]=='_' or nm in asked or not full(nm) or not fn.__doc__ or k in patched.get(self.nm,()): return
        r = showdoc.BasicMarkdownRenderer(o if isinstance(o,property) else fn, name=nm)
        return card(nm, r.orig, r.docs, r.sig, r.dm.dm if isinstance(r.dm,DocmentText) else {}, colons=5,
            opts=[f':{type(o).__name__}:'] if isinstance(o,(classmethod,staticmethod)) else ())
showdoc.BasicMarkdownRenderer = SphinxRenderer
patched = {}          # class → names that were patched on it: those have cards of their own
exported = {n for n,*_ in names}
for n,_,kind in names:
    if kind=='patch': patched.setdefault(n.split('.')[2],set()).add(n.split('.')[3])

class cards(procs.add_show_docs):
    "A card behind each exported cell for whatever it defines, in the order of the source; a dunder without a docstring has none"
    def names(self, cell, hand):
        for o in cell.parsed_() or ():
            if isinstance(o,_defs) and (o.name[0]!='_' or (o.name[:2]=='__' and ast.get_docstring(o))): nms = L(showdoc.showdoc_nm(o))
            else: nms = [nm] if f'{lib}.{Lookup.page}.{(nm := target(o))}' in data else []
            yield from (nm for nm in nms if nm not in hand)
    def begin(self):
        nb = self.nb
        hand,exports = {procs._get_nm(t) for c in nb.cells for t in procs._show_docs(c.parsed_() or ())},[c for c in nb.cells if procs._want_doc(c)]
        for cell in reversed(exports):
            new = [mk_cell(f'show_doc({nm}, name={nm!r})' if full(nm) in data else f'show_doc({nm})') for nm in self.names(cell, hand)]
            for c in new: c.has_sd = True
            nb.cells[cell.idx_+1:cell.idx_+1] = new
        nb.has_docs_ = hand or exports

ambiguous = {'arms','digits','presets','prunable','rewind','words'}     # also experiments, columns, verbs: elsewhere than at home they link as `digits()` only
class Lookup(NbdevLookup):
    "Links to our own symbols become roles, which Sphinx checks; others stay links"
    page = ''         # the one being staged
    def _link_sym(self, m):
        f = full(m[1])
        if f and m[1] in ambiguous and m[0][-2]!=')' and self.page!=modname(f): return m[0]
        return f'{{py:obj}}`{m[1]} <{f}>`' if f else super()._link_sym(m)
procs.NbdevLookup = Lookup
_role = re.compile(r'\{py:obj\}`([^`<]+) <([\w.]+)>`')
def retarget(m):
    "A method that no page shows links to its class; a name that is not exported, and has no card, is plain code"
    up = m[2].rpartition('.')[0]
    if up in shown and m[2] not in shown: return f'{{py:obj}}`{m[1]} <{up}>`'
    return m[0] if m[2] in shown or m[2] in exported else f'`{m[1]}`'

class run_exports(procs.exec_show_docs):
    "Runs what the cards need: exported cells, and imports, of a lesson cell the imports alone"
    def __call__(self, cell):
        trees = cell.parsed_() if cell.cell_type=='code' and cell.source else None
        lesson = trees and not cell.directives_.keys() & {'export','exports','exporti','exec_doc'} and not procs._show_docs(trees)
        if not lesson: return super().__call__(cell)
        if cell.directives_.get('eval','').lower()!='false' and self.nb.has_docs_:
            for o in trees:
                if isinstance(o,(ast.Import,ast.ImportFrom)): self.k.run_cell(ast.unparse(o))
class Site(FilterDefaults):
    def base_procs(self): return [{procs.exec_show_docs:run_exports, procs.add_show_docs:cards}.get(p,p) for p in super().base_procs()]

# --- Quarto's syntax → MyST's

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
    return '\n'.join(['::::::{tab-set}']+[f':::::{{tab-item}} {t}\n{b.strip()}\n:::::' for t,b in zip(parts[::2],parts[1::2])]+['::::::'])
_nbl = re.compile(r'\]\(([^)\s]*?)([^/)\s]+\.ipynb)(#[^)]*)?\)')
def markdown(s, here):
    def link(m):
        if not (here/m[1]/m[2]).exists(): raise FileNotFoundError(f'a link leads to {m[1]}{m[2]}, which is not there')
        return f"]({m[1]}{nbpath2html(m[2]).with_suffix('.ipynb')}{m[3] or ''})"
    s = _nbl.sub(link, _call.sub(callout, _tabs.sub(tabset, s)))
    if m := re.search(r'^:{3,}\s*\{\.[^}]*\}', s, re.M): raise ValueError(f'docs/build.py has no translation of {m[0]}')
    return s

def ground(o):
    "How a figure meets a dark page: drawn on nothing, on paper (shown inverted), or neither; and whether it is too wide for a phone"
    from PIL import Image
    im = Image.open(BytesIO(b64decode(''.join(o['data']['image/png'])))).convert('RGBA')
    *rgb,a = im.getpixel((0,0))
    return ('fig-clear' if a==0 else 'fig-paper' if min(rgb)>240 else 'fig-dark')+' fig-wide'*(im.width>1.8*im.height)

def table(h):
    "A table whose intervals do not break over lines, marked where its rows are just numbered"
    h = re.sub(r'\([-\d.]+ to [-\d.]+\)|&lt; \.?\d|\d %', lambda m: m[0].replace(' ','\xa0'), h)
    rows = re.findall(r'<th[^>]*>(.*?)</th>', h.rpartition('<tbody')[2])
    return h.replace('class="dataframe"', 'class="dataframe numbered"') if rows and all(re.fullmatch(r'\d+',r) for r in rows) else h

_dir = re.compile(r'^#\|\s*([\w-]+)\s*:\s*(.*)\n?', re.M)
def code(c):
    d = {k:v.strip().strip('"') for k,v in _dir.findall(c.source)}
    c.source = _dir.sub('', c.source).strip()
    if d.get('include')=='false': return None
    if re.match(r'show_doc', c.source):   # hoisted, so that Sphinx sees the directive as part of the page
        return mk_cell(''.join(''.join(o['data']['text/markdown']) for o in c.outputs if 'data' in o), 'markdown')
    for o in c.outputs:
        if h := o.get('data',{}).get('text/html'): o['data']['text/html'] = table(''.join(h))
    fold = d.get('code-fold','false') not in ('false','show')
    tags = [t for t,on in [('remove-input', d.get('echo')=='false' or not c.source), ('remove-output', d.get('output')=='false'), ('hide-input',fold)] if on]
    my = dict(code_prompt_show=d.get('code-summary','Code'), code_prompt_hide=d.get('code-summary','Code')) if fold else {}
    if 'fig-cap' in d: my['figure'] = dict(caption=d['fig-cap'])
    if pngs := [o for o in c.outputs if 'image/png' in o.get('data',{})]:
        my['image'] = dict(alt=d.get('fig-alt') or d.get('fig-cap') or 'Figure drawn by the code above', classes=ground(pngs[0]))
        if wh := pngs[0].get('metadata',{}).get('image/png'): my['image']['width'] = f"{wh['width']}px"
    c.metadata.pop('execution',None)
    c.metadata.update(tags=tags, **({'mystnb':my} if my else {}))
    return c

# --- Staging and building

def stage(p):
    nb,cells = read_nb(p),[]
    Lookup.page = nbpath2html(p.relative_to(cfg.nbs_path)).with_suffix('').as_posix()
    try:
        Site()(nb)
        for c in nb.cells:
            if c.cell_type=='markdown': c.source = markdown(c.source, p.parent)
            elif c.cell_type=='raw' or (c := code(c)) is None: continue
            cells.append(c)
    except Exception as e: sys.exit(f'{p}: {type(e).__name__}: {e}')
    fm = nb.frontmatter_
    head = f"# {fm.get('title', p.stem)}\n\n" + (f":::{{div}} lead\n{fm['description']}\n:::" if fm.get('description') else '')
    nb.cells = [mk_cell(head,'markdown')] + cells
    return nb

def title(nb): return nb.frontmatter_.get('title','')
def contents(pages):
    "A table of the modules: what each is for, and its public names"
    def row(p, nb):
        fs = [n for n,_,kind in names if modname(n)==p.stem and kind!='member' and not (kind=='patch' and n.rpartition('.')[0] in exported)]
        if p.stem in ('all','index') or not fs: return
        about = (nb.frontmatter_.get('description') or '').replace('|', r'\|')
        return f"| [{title(nb)}]({p}) | {about} | "+', '.join(f"{{py:obj}}`{n.split('.',2)[2]} <{n}>`" for n in fs)+' |'
    return '\n'.join([':::{table}',':class: modules','','| Module | What for | Public names |','|:--|:--|:--|']+[r for p,nb in pages.items() if p.parent==Path() and (r := row(p,nb))]+[':::'])

def stage_all():
    shutil.rmtree(src, ignore_errors=True)
    nbs = sorted(nbglob(as_path=True), key=lambda p: (len(p.parts),p))
    for p in nbs: asked.update(re.findall(r'^show_doc\(([\w.]+)', '\n'.join(c.source for c in read_nb(p).cells), re.M))
    pages = {nbpath2html(p.relative_to(cfg.nbs_path)).with_suffix('.ipynb'):stage(p) for p in nbs}
    if bad := missing():
        sys.exit('These public names have no docstring (a value: no comment behind or above it), or no page shows them:\n  '+'\n  '.join(bad))
    if (p := Path('all.ipynb')) in pages: pages[p].cells.append(mk_cell(contents(pages), 'markdown'))
    for p in (p for p in cfg.nbs_path.rglob('*') if p.suffix in ('.png','.jpg','.svg','.gif','.webp') and p.is_file()):
        (dst := src/p.relative_to(cfg.nbs_path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p,dst)
    def titled(d): return {'tutorials':'Guides','papers':'Papers','':'Library','more':'Project'}.get(d, d.replace('_',' ').capitalize())
    order,toc = ['tutorials','papers',''],[]
    rank = lambda d: order.index(d) if d in order else len(order)
    twice = {t for t,n in Counter(map(title, pages.values())).items() if n>1}
    def entry(p, d):
        "A path, with a title of its own where two pages have the same"
        u,t = p.with_suffix('').as_posix(),title(pages[p])
        return f"{t} ({dict(tutorials='guide',papers='paper').get(d,d)}) <{u}>" if d and t in twice else u
    for d,ps in groupby(sorted(pages, key=lambda p: rank(str(p.parent).strip('.'))), key=lambda p: str(p.parent).strip('.')):
        if ps := [entry(p,d) for p in ps if p.stem!='index']: toc.append((d,ps))
    extra = [p for o in ('CHANGELOG','CONTRIBUTING') if (p := cfg.config_path/f'{o}.md').exists()]
    toc.append(('more', [p.stem.lower() for p in extra]))
    for d,ps in toc:
        pages[Path('index.ipynb')].cells.append(mk_cell('\n'.join(['```{toctree}',':hidden:',f':caption: {titled(d)}','']+ps+['```']), 'markdown'))
    for rel,nb in pages.items():
        for c in nb.cells:
            if c.cell_type=='markdown': c.source = _role.sub(retarget, c.source)
        (src/rel).parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, src/rel)
    for p in extra: shutil.copy(p, src/f'{p.stem.lower()}.md')

class Page(HTMLParser):
    "What a page points to, what can be pointed at, and what a viewer would fetch"
    def __init__(self, p):
        super().__init__()
        self.ids,self.links,self.loads,self.bad = set(),[],[],[]
        self.feed(p.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids.update(v for k in ('id','name') if (v := a.get(k)))
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        elif tag=='link' and not {'canonical','alternate'} & set(a.get('rel','').split()): self.loads.append(a.get('href',''))
        elif tag in ('script','img','iframe','source','video','audio','embed') and a.get('src'): self.loads.append(a['src'])
        elif tag=='object' and a.get('data'): self.loads.append(a['data'])
        if tag=='img' and not (a.get('alt') or '').strip(): self.bad.append(f"image without alt text: {a.get('src')}")

def check():
    "Every link and anchor leads somewhere, every image has alt text, and looking at a page asks nothing of other hosts"
    pages,bad = {p:Page(p) for p in out.rglob('*.html')},[]
    for p,page in pages.items():
        errs = list(page.bad)
        for url in page.links+page.loads:
            if re.match(r'\w+:|//', url):
                if url in page.loads and not url.startswith('data:'): errs.append(f'fetched from another host: {url}')
                continue
            path,frag = urldefrag(url.split('?')[0] if '#' not in url else re.sub(r'\?[^#]*','',url))
            t = (p.parent/unquote(path)).resolve() if path else p
            if t.is_dir(): t = t/'index.html'
            if not t.exists(): errs.append(f'broken link: {url}')
            elif frag and t in pages and unquote(frag) not in pages[t].ids: errs.append(f'broken anchor: {url}')
        bad += [f'{p.relative_to(out)}: {e}' for e in dict.fromkeys(errs)]
    for p in out.rglob('*.css'):
        bad += [f'{p.relative_to(out)}: fetched from another host: {u}' for u in re.findall(r'(?:@import\s+|url\()["\']?((?:https?:)?//[^"\')]+)', p.read_text(encoding='utf-8'))]
    if bad: sys.exit('The site is built, but:\n  '+'\n  '.join(bad))
    return len(pages)

def main():
    os.environ['IN_TEST'] = '1'
    stage_all()
    shutil.rmtree(out, ignore_errors=True)
    rc = subprocess.run([sys.executable,'-m','sphinx','-q','-W','--keep-going','-E','-b','html','-d',cfg.doc_path/'doctrees','-c',here,src,out]+sys.argv[1:]).returncode
    if rc: sys.exit(rc)
    print(f'{check()} pages in {os.path.relpath(out)}')
if __name__=='__main__':
    if sys.version_info<(3,11): print(f'The site was NOT built: Sphinx 9 needs Python 3.11 or newer, this is {sys.version.split()[0]}')
    else: main()
