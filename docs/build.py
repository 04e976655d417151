"Build the site: stage nbs/ as MyST notebooks through nbdev's own processors, run Sphinx over them, then check every link and image"
import ast,inspect,os,re,shutil,subprocess,sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from itertools import groupby
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
own = {k:s for m,d in NbdevLookup().entries[lib]['syms'].items() for s in d for k in (s, s[len(m)+1:])}
def full(nm): return own.get(nm)

def public():
    "Full name of each public function, class and patched method of the package, and whether it has a docstring"
    for p in sorted(cfg.lib_path.glob('[!_]*.py')):
        tree = ast.parse(p.read_text(encoding='utf-8'))
        al = next((ast.literal_eval(o.value) for o in tree.body if isinstance(o,ast.Assign) and getattr(o.targets[0],'id','')=='__all__'), [])
        for o in tree.body:
            if not isinstance(o,_defs): continue
            for nm in L(patch_name(o)):
                if nm in al or ('.' in nm and o.name[0]!='_'): yield f'{lib}.{p.stem}.{nm}', ast.get_docstring(o)

shown = set()         # full names that some page has a card for
asked = set()         # names that a notebook shows by hand, anywhere

# --- Cards: `show_doc` as a directive of Sphinx's Python domain, with a field for each docment

def tidy(o):
    "Drop our own module names, and addresses, from the text of a signature"
    o = re.sub(r"<(?:function|class|bound method) '?((?:[\w.]|<\w+>)+)'?(?: at 0x\w+| of .*?)?>", lambda m: m[1].split('.')[-1].replace('<lambda>','lambda'), o)
    o = re.sub(r'\btorch\.nn\.modules\.\w+\.', 'nn.', re.sub(r'\btorch\.(?=Tensor\b)', '', o))
    return re.sub(r'\b(__main__|(?:'+re.escape(lib)+r'|fastai|fastcore)[\w.]*)\.(?=\w)', '', o)

def card(nm, sym, docs, sig=None, dm=None, inner=(), colons=6, opts=()):
    kind = ('property' if isinstance(sym,property) else 'class' if inspect.isclass(sym) else
            'method' if '.' in nm else 'function' if callable(sym) else 'data')
    fields = []
    if sig:
        ps = list(sig.parameters.values())
        if kind=='method' and ps and ps[0].name in ('self','cls'): sig = sig.replace(parameters=ps[1:])
        for p in sig.parameters.values() if kind!='property' else ():
            if not (d := dm.get(p.name,{}).get('docment')): continue
            fields.append(f':param {p.name}: '+' '.join(d.split()))
            if p.annotation is not p.empty: fields.append(f':type {p.name}: {tidy(_type_str(p.annotation))}')
        if d := dm.get('return',{}).get('docment'): fields.append(':returns: '+' '.join(d.split()))
        if kind=='class': sig = sig.replace(return_annotation=sig.empty)
    f,args,opts = full(nm), '' if kind=='property' else tidy(str(sig or '')), list(opts)
    if f: shown.add(f)
    if kind=='property' and sig and sig.return_annotation is not sig.empty: opts.append(f':type: {tidy(_type_str(sig.return_annotation))}')
    opts += [f":module: {f[:-len(nm)-1] if f else getattr(sym,'__module__','')}"] + ([] if f else [':no-index:'])
    c = ':'*colons
    return '\n'.join([f'{c}{{py:{kind}}} {nm}{args}'.replace('\n',' ')]+opts+['', docs or '', '']+fields+['']+list(inner)+[c])

class SphinxRenderer(showdoc.BasicMarkdownRenderer):
    def __init__(self, sym, name=None, title_level=3, **kw):
        self.orig = sym
        super().__init__(sym, name=name, title_level=title_level, **kw)
    def _repr_markdown_(self):
        dm = self.dm.dm if isinstance(self.dm,DocmentText) else {}
        inner = [self.member(k,o) for k,o in vars(self.orig).items()] if inspect.isclass(self.orig) else ()
        return card(self.nm, self.orig, self.docs, self.sig, dm, filter(None,inner))
    def member(self, k, o):
        "The card of a documented method of the class body, unless a notebook shows it elsewhere"
        nm,fn = f'{self.nm}.{k}', getattr(o,'fget',None) or getattr(o,'__func__',o)
        if k[0]=='_' or nm in asked or not full(nm) or not inspect.getdoc(fn) or k in patched.get(self.nm,()): return
        r = showdoc.BasicMarkdownRenderer(o if isinstance(o,property) else fn, name=nm)
        return card(nm, r.orig, r.docs, r.sig, r.dm.dm if isinstance(r.dm,DocmentText) else {}, colons=5,
            opts=[f':{type(o).__name__}:'] if isinstance(o,(classmethod,staticmethod)) else ())
showdoc.BasicMarkdownRenderer = SphinxRenderer
patched = {}          # class → names that were patched on it: those have cards of their own
exported = {n for n,_ in public()}
for nm in exported:
    if '.' in (n := nm.split('.',2)[2]): patched.setdefault(n.split('.')[0],set()).add(n.split('.')[1])

class Lookup(NbdevLookup):
    "Links to our own symbols become roles, which Sphinx checks; others stay links"
    def _link_sym(self, m):
        f = full(m[1])
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
    def base_procs(self): return [run_exports if p is procs.exec_show_docs else p for p in super().base_procs()]

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
    "How a figure meets a dark page: drawn on nothing, on paper (shown inverted), or neither"
    from PIL import Image
    im = Image.open(BytesIO(b64decode(''.join(o['data']['image/png'])))).convert('RGBA')
    *rgb,a = im.getpixel((0,0))
    return 'fig-clear' if a==0 else 'fig-paper' if min(rgb)>240 else 'fig-dark'

_dir = re.compile(r'^#\|\s*([\w-]+)\s*:\s*(.*)\n?', re.M)
def code(c):
    d = {k:v.strip().strip('"') for k,v in _dir.findall(c.source)}
    c.source = _dir.sub('', c.source).strip()
    if d.get('include')=='false': return None
    if re.match(r'show_doc', c.source):   # hoisted, so that Sphinx sees the directive as part of the page
        return mk_cell(''.join(''.join(o['data']['text/markdown']) for o in c.outputs if 'data' in o), 'markdown')
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

def stage_all():
    shutil.rmtree(src, ignore_errors=True)
    nbs = sorted(nbglob(as_path=True), key=lambda p: (len(p.parts),p))
    for p in nbs: asked.update(re.findall(r'^show_doc\(([\w.]+)', '\n'.join(c.source for c in read_nb(p).cells), re.M))
    pages = {nbpath2html(p.relative_to(cfg.nbs_path)).with_suffix('.ipynb'):stage(p) for p in nbs}
    if missing := [n for n,doc in public() if n not in shown or not doc]:
        sys.exit('These public names have no docstring, or no page shows them:\n  '+'\n  '.join(missing))
    for p in (p for p in cfg.nbs_path.rglob('*') if p.suffix in ('.png','.jpg','.svg','.gif','.webp') and p.is_file()):
        (dst := src/p.relative_to(cfg.nbs_path)).parent.mkdir(parents=True, exist_ok=True); shutil.copy(p,dst)
    def titled(d): return {'tutorials':'Guides','papers':'Papers','':'Library','more':'Project'}.get(d, d.replace('_',' ').capitalize())
    order,toc = ['tutorials','papers',''],[]
    rank = lambda d: order.index(d) if d in order else len(order)
    for d,ps in groupby(sorted(pages, key=lambda p: rank(str(p.parent).strip('.'))), key=lambda p: str(p.parent).strip('.')):
        if ps := [p.with_suffix('').as_posix() for p in ps if p.stem!='index']: toc.append((d,ps))
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
