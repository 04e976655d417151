"nbdev's `show_doc` as a directive of Sphinx's Python domain: a card with a signature and a field for each docment"
import ast,inspect,re
from dataclasses import is_dataclass
from importlib import import_module
from fastcore.docments import DocmentText,_type_str
from fastcore.foundation import L
from fastcore.nbio import mk_cell
from nbdev import showdoc
from nbdev.processors import FilterDefaults
from torch import nn
import nbdev.processors as procs
from symbols import Defs,asked,data,full,lib,on_event,patched,shown,target
from mentions import Lookup,linked

sorts = 'function|class|bound method|built-in function|module'
an_object = re.compile(r"<(?:"+sorts+r") '?((?:[\w.]|<\w+>)+)'?(?: at 0x\w+| of .*?| from .*?)?>")
own_module = re.compile(r'\b(__main__|(?:'+re.escape(lib)+r'|fastai|fastcore)[\w.]*)\.(?=\w)')
def tidy(o):
    "Drop our own module names, addresses and paths from the text of a signature"
    o = an_object.sub(lambda m: m[1].split('.')[-1].replace('<lambda>','lambda'), o)
    o = re.sub(r'\btorch\.nn\.modules\.\w+\.', 'nn.', re.sub(r'\btorch\.(?=Tensor\b)', '', o))
    o = re.sub(r'\bcollections\.abc\.(?=\w)', '', o).replace('torch._C.', 'torch.')
    return own_module.sub('', o)

def esc(o):
    "Text whose `<` outside of code is no tag"
    return re.sub(r'(`+)(?:(?!\1).)+\1|<(?!https?:)', lambda m: m[0] if m[1] else r'\<', o, flags=re.S)

def called(v):
    "What people call an item: by its name; a private class of torch by those that are made from it"
    n = getattr(v,'__name__',None) or getattr(v,'name',None) or repr(v)
    if not (inspect.isclass(v) and v.__module__.startswith('torch.nn.')): return [n]
    made = [v] if n[0]!='_' else [c for c in v.__subclasses__() if 'Lazy' not in c.__name__]
    return [f'nn.{c.__name__}' for c in made if getattr(nn, c.__name__, None) is c]

def holds(o):
    "What a public value holds: words with their meaning, keys, or items"
    if isinstance(o,dict):
        told = all(isinstance(v,str) for v in o.values())
        return '\n'.join(f'- `{k}`: {v}' for k,v in o.items()) if told else 'Keys: '+', '.join(f'`{k}`' for k in o)
    return ', '.join(f'`{n}`' for v in o for n in called(v)) if isinstance(o,(tuple,list)) else ''

def kind_of(nm, sym):
    if isinstance(sym,property): return 'property'
    if inspect.isclass(sym): return 'class'
    return 'method' if '.' in nm else 'function' if callable(sym) else 'data'

def own_signature(sig, kind):
    "Without `self`, and of a class without what it returns"
    ps = list(sig.parameters.values())
    if kind=='method' and ps and ps[0].name in ('self','cls'): sig = sig.replace(parameters=ps[1:])
    return sig.replace(return_annotation=sig.empty) if kind=='class' else sig

def fields(sig, dm, kind, says):
    "A field for each docment, with the links that `says` makes"
    for p in sig.parameters.values() if kind!='property' else ():
        if not (d := dm.get(p.name,{}).get('docment')): continue
        yield f':param {p.name}: '+esc(says(' '.join(d.split())))
        if p.annotation is not p.empty: yield f':type {p.name}: {tidy(_type_str(p.annotation))}'
    if d := dm.get('return',{}).get('docment'): yield ':returns: '+esc(says(' '.join(d.split())))

def card(nm, sym, docs, sig=None, dm=None, inner=(), colons=6, opts=()):
    kind,f,opts = kind_of(nm, sym),full(nm),list(opts)
    if f: shown.add(f)
    if sig: sig = own_signature(sig, kind)
    own = {nm, nm.rpartition('.')[2], *(sig.parameters if sig else ())}     # no links to itself, nor from its arguments
    def says(o): return linked(o, own)
    fs = list(fields(sig, dm, kind, says)) if sig else []
    args = '' if kind=='property' else tidy(str(sig or ''))
    typed = kind=='property' and sig and sig.return_annotation is not sig.empty
    if typed: opts.append(f':type: {tidy(_type_str(sig.return_annotation))}')
    opts.append(f":module: {f[:-len(nm)-1] if f else getattr(sym,'__module__','')}")
    if not f: opts.append(':no-index:')
    c = ':'*colons
    head = f'{c}{{py:{kind}}} {nm}{args}'.replace('\n',' ')
    return '\n'.join([head, *opts, '', esc(says(docs or '')), '', *fs, '', *inner, c])

def events_of(cls):
    "A folded list of what a class does when fastai or torch calls it"
    if not (f := full(cls.__qualname__)): return
    cls = getattr(import_module(f.rpartition('.')[0]), cls.__qualname__)    # with what later cells add
    fs = {k:o for k in dir(cls) if on_event.fullmatch(k) and getattr(o := getattr(cls, k), '__module__', '').startswith(lib)}
    rows = [f'- `{k}`: {" ".join(o.__doc__.split())}' if o.__doc__ else f'- `{k}`' for k,o in fs.items()]
    if rows: return esc(linked('\n'.join(['::::{dropdown} What it does when fastai or torch calls', '', *rows, '::::']), fs.keys()))

def docments(r): return r.dm.dm if isinstance(r.dm,DocmentText) else {}
class SphinxRenderer(showdoc.BasicMarkdownRenderer):
    def __init__(self, sym, name=None, title_level=3, **kw):
        if inspect.isclass(sym) and is_dataclass(sym) and (f := full(sym.__qualname__)):
            sym = getattr(import_module(f.rpartition('.')[0]), sym.__qualname__)   # its comments are in a file
        self.orig = sym
        super().__init__(sym, name=name, title_level=title_level, **kw)
    def _repr_markdown_(self):
        if (f := full(self.nm)) in data: return self.value(data[f])
        o = self.orig
        inner = [events_of(o), *[self.member(k,m) for k,m in vars(o).items()]] if inspect.isclass(o) else ()
        return card(self.nm, self.orig, self.docs, self.sig, docments(self), filter(None,inner))
    def value(self, doc):
        "The card of a public value"
        if inspect.isclass(self.orig): return card(self.nm, self.orig, doc, self.sig, {})
        return card(self.nm, self.orig, f'{doc}\n\n{holds(self.orig)}', opts=[f':type: {type(self.orig).__name__}'])
    def member(self, k, o):
        "The card of a method of the class body that has a docstring of its own, unless a notebook shows it elsewhere"
        nm,fn = f'{self.nm}.{k}', getattr(o,'fget',None) or getattr(o,'__func__',o)
        if k[0]=='_' or on_event.fullmatch(k) or nm in asked or not full(nm) or not fn.__doc__ or k in patched.get(self.nm,()): return
        r = SphinxRenderer(o if isinstance(o,property) else fn, name=nm)
        opts = [f':{type(o).__name__}:'] if isinstance(o,(classmethod,staticmethod)) else ()
        return card(nm, r.orig, r.docs, r.sig, docments(r), colons=5, opts=opts)
showdoc.BasicMarkdownRenderer = SphinxRenderer

class cards(procs.add_show_docs):
    "A card behind each exported cell for whatever it defines, in the order of the source"
    def names(self, cell, hand):
        for o in cell.parsed_() or (): yield from (nm for nm in self.names_of(o) if nm not in hand)
    def names_of(self, o):
        "A dunder without a docstring has no card, nor has what fastai calls: its class has a list"
        if isinstance(o,Defs) and on_event.fullmatch(o.name): return []
        told = isinstance(o,Defs) and (o.name[0]!='_' or (o.name[:2]=='__' and ast.get_docstring(o)))
        if told: return L(showdoc.showdoc_nm(o))
        return [nm] if f'{lib}.{Lookup.page}.{(nm := target(o))}' in data else []
    def call(self, nm): return f'show_doc({nm}, name={nm!r})' if full(nm) in data else f'show_doc({nm})'
    def begin(self):
        nb = self.nb
        hand = {procs._get_nm(t) for c in nb.cells for t in procs._show_docs(c.parsed_() or ())}
        exports = [c for c in nb.cells if procs._want_doc(c)]
        for cell in reversed(exports):
            new = [mk_cell(self.call(nm)) for nm in self.names(cell, hand)]
            for c in new: c.has_sd = True
            nb.cells[cell.idx_+1:cell.idx_+1] = new
        nb.has_docs_ = hand or exports

procs.NbdevLookup = Lookup

class run_exports(procs.exec_show_docs):
    "Runs what the cards need: exported cells, and imports, of a lesson cell the imports alone"
    def __call__(self, cell):
        trees = cell.parsed_() if cell.cell_type=='code' and cell.source else None
        made = cell.directives_.keys() & {'export','exports','exporti','exec_doc'} if trees else ()
        if not trees or made or procs._show_docs(trees): return super().__call__(cell)
        if cell.directives_.get('eval','').lower()=='false' or not self.nb.has_docs_: return
        for o in trees:
            if isinstance(o,(ast.Import,ast.ImportFrom)): self.k.run_cell(ast.unparse(o))

class Site(FilterDefaults):
    "nbdev's processors, with our cards"
    ours = {procs.exec_show_docs:run_exports, procs.add_show_docs:cards}
    def base_procs(self): return [self.ours.get(p,p) for p in super().base_procs()]
