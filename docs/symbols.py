"The public names of the package: where each is defined, what its docstring says, which page shows it"
import ast,json,os,re,sys,tokenize
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from fastcore.foundation import L
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup,patch_name

root = Path(__file__).resolve().parent.parent
os.chdir(root)
sys.path.insert(0, str(root))     # this checkout, whatever is installed
cfg = get_config()
lib = cfg.lib_name
Defs = ast.FunctionDef,ast.AsyncFunctionDef,ast.ClassDef

def target(o):
    "The name that a statement assigns, if any"
    return getattr(o.targets[0],'id','') if isinstance(o,ast.Assign) else ''

def exported_by(tree): return next((set(ast.literal_eval(o.value)) for o in tree.body if target(o)=='__all__'), set())

def comments(p):
    "Line → comment, of a module; nbdev's own are left out"
    with open(p,'rb') as f:
        toks = [o for o in tokenize.tokenize(f.readline) if o.type==tokenize.COMMENT and o.string[:4]!='# %%']
    return {o.start[0]:o for o in toks}

def note_of(o, notes):
    "What is said of a value: the comment behind it, or those above it"
    behind,above = notes.get(o.end_lineno),map(notes.get, range(o.lineno-1,0,-1))
    ns = [behind] if behind else list(takewhile(lambda n: n and not n.start[1], above))[::-1]
    return ' '.join(n.string.lstrip('# ') for n in ns)

on_event = re.compile(r'(?:before|after)_\w+')      # a method that fastai or torch calls, and no reader
def for_readers(o): return o.name[0]!='_' and not on_event.fullmatch(o.name)

def defined_by(o, al):
    "What a definition makes public: itself or what it patches, and the methods of its body"
    for nm in L(patch_name(o)):
        if nm in al or ('.' in nm and for_readers(o)): yield nm, ast.get_docstring(o), 'patch' if '.' in nm else 'def'
    for m in o.body if isinstance(o,ast.ClassDef) and o.name in al else ():
        if isinstance(m,Defs) and for_readers(m): yield f'{o.name}.{m.name}', ast.get_docstring(m), 'member'

def for_rooms(p):
    "Ids of the cells that a notebook exports for other rooms alone (`#| exporti`), as the module `p` names them"
    nb = next(root.joinpath('nbs').glob(f'[0-9][0-9]_{p.stem}.ipynb'), None)
    cells = [] if nb is None else json.loads(nb.read_text(encoding='utf-8'))['cells']
    return {c['id'] for c in cells if re.match(r'#\|\s*exporti', ''.join(c['source']))}

def cell_of(p):
    "Line → id of the cell that it comes from, of a module"
    ids,now = {},None
    for i,l in enumerate(p.read_text(encoding='utf-8').splitlines(), 1):
        if m := re.match(r'# %% \S+ #(\w+)', l): now = m[1]
        ids[i] = now
    return ids

def public_in(p):
    "Name, docstring and kind of what a module makes public"
    tree,notes = ast.parse(p.read_text(encoding='utf-8')),comments(p)
    al,inner,cells = exported_by(tree),for_rooms(p),cell_of(p)
    for o in tree.body:
        if isinstance(o,Defs) and cells[o.lineno] in inner: continue
        if isinstance(o,Defs):
            yield from defined_by(o, al)
            al.discard(o.name)
        elif (nm := target(o)) in al:
            yield nm, note_of(o, notes), 'data'
            al.discard(nm)
    yield from ((nm, None, 'data') for nm in sorted(al))

def public():
    "Full name of each public function, class, method and value, its docstring (of a value: its comment), and its kind"
    for p in sorted(cfg.lib_path.glob('[!_]*.py')):
        yield from ((f'{lib}.{p.stem}.{nm}', doc, kind) for nm,doc,kind in public_in(p))

def inherited(n):
    "Has a base class a method of this name?"
    mod,cls,k = n.rsplit('.',2)
    return any(hasattr(b,k) for b in getattr(import_module(mod),cls).__mro__[1:])

shown = set()         # full names that some page has a card for
asked = set()         # names that a notebook shows by hand, anywhere
def lacks(n, doc, kind): return (n not in shown or not doc) and not (kind=='member' and not doc and inherited(n))
def missing(): return [o[0] for o in public() if lacks(*o)]

names = list(public())
data = {n:doc for n,doc,kind in names if kind=='data'}
exported = {n for n,*_ in names}
patched = {}          # class → names that were patched on it: those have cards of their own
for n,_,kind in names:
    if kind=='patch': patched.setdefault(n.split('.')[2],set()).add(n.split('.')[3])

own = {}              # name, in full or within its module → full name, of all that nbdev indexed and of values
syms = [(m,s) for m,d in NbdevLookup().entries[lib]['syms'].items() for s in [*d, *(n for n in data if n.startswith(m+'.'))]]
for m,s in sorted(syms, key=lambda o: o[1] in exported): own.update({s:s, s[len(m)+1:]:s})    # a public name before a room's own
def full(nm): return own.get(nm)
def modname(f): return f.split('.')[1]

role = re.compile(r'\{py:obj\}`([^`<]+) <([\w.]+)>`')
def retarget(m):
    "A method that no page shows links to its class; a name that is not exported, and has no card, is plain code"
    up = m[2].rpartition('.')[0]
    if up in shown and m[2] not in shown: return f'{{py:obj}}`{m[1]} <{up}>`'
    return m[0] if m[2] in shown or m[2] in exported else f'`{m[1]}`'
