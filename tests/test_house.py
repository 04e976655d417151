"""The rules of the house, read off the source: lines, statements, functions, names, rooms, floors.
`python tests/test_house.py [FILE...]` prints whatever breaks one, and fails if something does."""
import ast,io,json,re,sys,tokenize
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
import pytest

root = Path(__file__).resolve().parent.parent
lib = 'fastai_lottery'
limits = dict(line=140, long=120, lesson=100, statements=20, lines=30, parameters=8, cell=27, room=370, before=5)

# Verbs that a user types, by full name, with the reason: each setting has a name of its own in the signature,
# with a comment behind it. So they may have more parameters and lines; what they do is as short as elsewhere.
wordy = {
    'rounds.Learner.fit_lottery':'the verb of the library: what is asked of a lottery is asked here',
    'rounds.Learner.fit_ticket':"a ticket's training has the same settings",
    'gradual.Learner.fit_gradual':'so has a training within which masks tighten',
    'seeds.seeds_lottery':'a lottery over starts: how many, how long, when they are left behind, where it is played',
    'data.image_dls':'each says how a folder of images becomes batches',
    'cli.run':'each option of the command is one of its parameters',
    'nets.Learner.fit_drops':"the papers' schedule, beside fastai's `fit` and with its parameters",
}

# --- files, and the pieces that they are made of

class Piece(NamedTuple):
    "A file, or a cell of a notebook"
    path:str            # From the root of the repo
    kind:str            # 'code', 'text'; of cells 'export', 'lesson', 'hidden', 'prose'
    source:str
    cell:int=None       # Which cell, from 0
    shown:bool=False    # Has an output, which the site shows
    def at(self, line): return f'{self.path} {"" if self.cell is None else f"cell {self.cell} "}line {line}'

def kind_of(source):
    "What a code cell is by its directives"
    marks = set(re.findall(r'^#\|\s*([\w-]+)', source, re.M))
    if marks & {'export','exports','exporti'}: return 'export'
    unseen = marks & {'hide','default_exp'} or re.search(r'^#\|\s*include:\s*false', source, re.M)
    return 'hidden' if unseen else 'lesson'

def seen(cell, source):
    "Does the site show an output of this cell?"
    types = {o.get('name', o['output_type']) for o in cell.get('outputs', ())}
    return bool(types & {'display_data','execute_result','stdout'}) and not re.search(r'^#\|\s*output:\s*false', source, re.M)

def cells_of(nb, path):
    for i,c in enumerate(nb['cells']):
        s = ''.join(c['source'])
        if c['cell_type']=='code': yield Piece(path, kind_of(s), s, i, seen(c,s))
        else: yield Piece(path, 'prose', s, i)

@lru_cache(None)
def pieces(path):
    text = (root/path).read_text(encoding='utf-8')
    if path.endswith('.ipynb'): return list(cells_of(json.loads(text), path))
    return [Piece(path, 'code' if path.endswith('.py') else 'text', text)]

def listed(*globs):
    found = [p.relative_to(root).as_posix() for g in globs for p in root.glob(g) if p.is_file()]
    return sorted(p for p in found if not re.search(r'/([.]|_(?!static))', p))
notebooks = listed('nbs/**/*.ipynb')
rooms = {m[2]:p for p in notebooks if (m := re.fullmatch(r'nbs/(\d\d)_(\w+)\.ipynb', p))}
def floors_of(names):
    "Number of each room by its notebook's name; those that share one stand on a landing, in the order of the listing"
    ns = sorted(names)
    return {n[3:]:int(n[:2])+sum(o[:2]==n[:2] for o in ns[:i])/10 for i,n in enumerate(ns)}
floors = floors_of([Path(p).stem for p in rooms.values()])
scripts = listed('tests/*.py', 'docs/*.py', 'bench/*.py')
modules = listed(f'{lib}/*.py')
others = listed('docs/_static/*')
hand_written = notebooks+scripts            # modules are copies of notebooks, which a test of the project holds

any_code = 'code','export','lesson','hidden'
def code(path): return [p for p in pieces(path) if p.kind in any_code]

@lru_cache(None)
def parsed(piece):
    "The tree of a piece of code, magics left out; None where it is not Python"
    if piece.source.lstrip().startswith('%%'): return None
    return ast.parse(re.sub(r'^(\s*)[%!].*', r'\1pass', piece.source, flags=re.M))

def trees(path): return [(p,t) for p in code(path) if (t := parsed(p))]

# --- lines

def too_long(piece):
    "Lines that a reader would have to scroll for"
    most = limits['lesson' if piece.kind=='lesson' else 'line']
    for i,l in enumerate(piece.source.splitlines(), 1):
        if len(l)>most: yield i, f'{len(l)} characters, of {most} at most: {l.strip()[:60]}...'

def long_share(pieces):
    "How many lines of code there are, and how many of them are long"
    ls = [l for p in pieces for l in p.source.splitlines() if l.strip()]
    return len(ls), sum(len(l)>limits['long'] for l in ls)

def statements_beside(piece):
    "Two statements in a line; a lesson may end one in `;`, which hides what a plot returns"
    if parsed(piece) is None: return
    source = re.sub(r'^(\s*)[%!].*', r'\1pass', piece.source, flags=re.M)
    toks = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for o,then in zip(toks, toks[1:]):
        ends = piece.kind=='lesson' and then.type in (tokenize.NEWLINE, tokenize.COMMENT)
        beside = o.type==tokenize.OP and o.string==';' and not ends
        if beside: yield o.start[0], f'two statements in a line: {o.line.strip()[:60]}'

# --- functions

Def = ast.FunctionDef,ast.AsyncFunctionDef
def has_docstring(o): return isinstance(o, (*Def,ast.ClassDef)) and ast.get_docstring(o, clean=False) is not None
def count_statements(f):
    "All statements within, those of functions within too; a docstring is none"
    inner = [o for o in ast.walk(f) if o is not f]
    return sum(isinstance(o, ast.stmt) for o in inner)-sum(map(has_docstring, [f,*inner]))

def patched_on(f):
    "The class that `@patch` adds a function to"
    marked = any('patch' in ast.unparse(d) for d in f.decorator_list)
    ann = f.args.args[0].annotation if marked and f.args.args else None
    return ast.unparse(ann)+'.' if ann else ''

def functions(tree, within=''):
    "Each function with its full name"
    for o in ast.iter_child_nodes(tree):
        if isinstance(o, Def): yield f'{within}{patched_on(o)}{o.name}', o
        named = isinstance(o, (*Def,ast.ClassDef))
        yield from functions(o, f'{within}{o.name}.' if named else within)

def home(path): return re.sub(r'^\d\d_', '', Path(path).stem)

def count_parameters(f):
    "Those that a caller can name, `self` left out"
    a = f.args
    names = [o.arg for o in a.posonlyargs+a.args+a.kwonlyargs]
    return len(names)-(names[:1] in (['self'],['cls']))

def over(name, f):
    "What of a function is beyond a limit"
    n = dict(statements=count_statements(f), lines=f.end_lineno-f.lineno+1, parameters=count_parameters(f))
    free = {'lines','parameters'} if name in wordy else set()
    return {k:v for k,v in n.items() if v>limits[k] and k not in free}

def too_big(piece):
    for name,f in functions(parsed(piece) or ast.Module([],[])):
        beyond = over(f'{home(piece.path)}.{name}', f)
        for k,v in beyond.items(): yield f.lineno, f'`{name}` has {v} {k}, of {limits[k]} at most'

# --- expressions

Comp = ast.ListComp,ast.SetComp,ast.DictComp,ast.GeneratorExp
def nested(o, comps=0, called=False, ifs=0):
    "Lines with a comprehension in a comprehension in a call, or with three conditional expressions in each other"
    comps += called and isinstance(o, Comp)
    ifs = ifs+1 if isinstance(o, ast.IfExp) else ifs if isinstance(o, ast.expr) else 0
    if comps==2 and isinstance(o,
                               Comp): yield o.lineno, 'a comprehension in a comprehension in a call: name the inner one'
    elif ifs==3 and isinstance(o, ast.IfExp): yield o.lineno, 'three conditional expressions in each other'
    else:
        for k in ast.iter_child_nodes(o):
            if isinstance(k, ast.stmt): yield from nested(k)
            else: yield from nested(k, comps, called or (isinstance(o, ast.Call) and k is not o.func), ifs)

def too_deep(piece):
    if t := parsed(piece): yield from nested(t)

# --- names of other rooms

# Of every namedtuple; of fastai's Learner, whose own methods `fast_events` stands in for
known_to_all = {'_replace','_asdict','_fields','_make', '_call_one','_with_events'}
def private(n): return bool(re.match(r'_(?!_)', n)) and not n.endswith('_') and n not in known_to_all

def bound(o):
    "Names that a statement of a module or class binds"
    if isinstance(o, (*Def,ast.ClassDef)): return [o.name]
    targets = getattr(o, 'targets', None) or [t for t in [getattr(o, 'target', None)] if t]
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]

def of_self(o):
    "Does this give an object an attribute?"
    stored = isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Store)
    return stored and isinstance(o.value, ast.Name) and o.value.id in ('self','cls')

def is_patch(o): return isinstance(o, Def) and bool(patched_on(o))
def of_module(tree):
    "Private names of a module: all of its own but what it patches"
    for o in ast.walk(tree):
        own = o.body if isinstance(o, (ast.Module,ast.If,ast.Try)) else ()
        yield from (n for s in own if not is_patch(s) for n in bound(s) if private(n))

def of_objects(tree):
    "Private names of classes and their objects, those that are patched included"
    for o in ast.walk(tree):
        own = o.body if isinstance(o, ast.ClassDef) else [o] if is_patch(o) else ()
        yield from (n for s in own for n in bound(s) if private(n))
        if of_self(o) and private(o.attr): yield o.attr

@lru_cache(None)
def defined_in(path, kinds=('code','export')):
    "Private names that code defines, of its module and of objects"
    ts = [t for p,t in trees(path) if p.kind in kinds]
    return {n for t in ts for n in of_module(t)}, {n for t in ts for n in of_objects(t)}

@lru_cache(None)
def owners():
    "Private name → rooms that define it, for names of modules and for names of objects"
    res = {},{}
    for r,p in rooms.items():
        for into,ns in zip(res, defined_in(p)):
            for n in ns: into.setdefault(n, []).append(r)
    return res

def imports(tree):
    "Names that an import binds, with what they stand for"
    for o in ast.walk(tree):
        home = f'{lib if o.level else ""}.{o.module or ""}.' if isinstance(o, ast.ImportFrom) else ''
        for a in o.names if isinstance(o, (ast.Import,ast.ImportFrom)) else ():
            name = a.name if home or a.asname else a.name.split('.')[0]
            yield a.asname or name, f'{home}{name}'.strip('.'), o.lineno

def first_name(o):
    "`a` of `a.b.c`"
    while isinstance(o, ast.Attribute): o = o.value
    return getattr(o, 'id', None)

def reached(o):
    "Names that an expression takes from an object or a module, and the first name of that"
    if isinstance(o, ast.Attribute): return [(first_name(o), o.attr)]
    called = o.func.id if isinstance(o, ast.Call) and isinstance(o.func, ast.Name) else ''
    if called not in ('getattr','setattr','hasattr','delattr'): return []
    return [(first_name(o.args[0]), a.value) for a in o.args[1:2] if isinstance(getattr(a, 'value', None), str)]

def reaches_over(tree, own, owners):
    "Private names of other rooms, imported or reached; what a class of one's own defines is one's own"
    ours = set()
    for nm,full,line in imports(tree):
        if full.split('.')[0]!=lib: continue
        ours.add(nm)
        if private(full.split('.')[-1]): yield line, f'`{full}` is private'
    of_modules,of_objects = owners
    for o in ast.walk(tree):
        for first,n in reached(o):
            at = (first in ours and of_modules.get(n)) or (n not in own and of_objects.get(n))
            if private(n) and at: yield o.lineno, f'`{n}` is private in {", ".join(at)}'

def private_of_others(piece):
    if t := parsed(piece): yield from reaches_over(t, defined_in(piece.path, any_code)[1], owners())

# --- rooms

def about_cell(piece):
    "Its tree, and the full names of its functions; a method is a part of its class"
    t = parsed(piece) or ast.Module([],[])
    return t, [f'{home(piece.path)}.{n}' for n,_ in functions(t) if '.' not in n or n.startswith('Learner.')]

def cell_too_full(piece):
    "One idea a cell, imports not counted; a function alone has a function's limit, one of `wordy` none"
    t,fs = about_cell(piece)
    lines = sum(not l.startswith('#|') for l in piece.source.strip().splitlines())
    n = lines-sum(o.end_lineno-o.lineno+1 for o in t.body if isinstance(o, (ast.Import,ast.ImportFrom)))
    most = limits['lines' if len(fs)==1 else 'cell']
    if n>most and not set(fs) & set(wordy): yield 1, f'an export cell of {n} lines, of {most} at most'

def late_lesson(pieces):
    first = next((p.cell for p in pieces if p.kind=='lesson' and p.shown), None)
    if first is None: yield 'no cell that a reader can run shows anything'
    elif first>=limits['before']:
        yield f'the first cell that one can run, and that shows something, is cell {first}, of {limits["before"]-1} at most'

def imported(tree):
    "Modules of this package that code imports, wherever in it"
    for o in ast.walk(tree):
        names = []
        if isinstance(o, ast.Import): names = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom):
            m = '.'.join(filter(None, [lib if o.level else '', o.module]))
            names = [f'{m}.{a.name}' for a in o.names] if m==lib else [m]
        yield from ((o.lineno, n.split('.')[1]) for n in names if n.startswith(lib+'.'))

# The second storey's rooms are leaves: they do not import each other, but for these, where one is made of the other, and for rooms of
# one number, which are one leaf
leaves = {24:{23}, 28:{26}}
def allowed(n, k):
    "May floor `n` import floor `k`? Smaller numbers alone, and of the second storey none on it but for `leaves`"
    return k<n and not (n//10==k//10==2 and int(k) not in {int(n), *leaves.get(int(n),())})

def wrong_floor(tree, mod, kind, floors):
    "Imports from the same floor or above; a lesson may import the room that it is about"
    for line,o in imported(tree):
        if o not in floors: yield line, f'no notebook exports {o}'
        elif not allowed(floors[mod], floors[o]) and not (o==mod and kind!='export'):
            yield line, f'floor {floors[mod]:g} imports {floors[o]:g}, {o}'

trains = re.compile(r'fit|fit_\w+|fine_tune|train_once|backward')
def wrong_storey(tree, floor):
    "What a storey must not know: values no Learner, pictures and commands no training"
    for o in ast.walk(tree):
        mods = [a.name for a in o.names] if isinstance(o, ast.Import) else [getattr(o, 'module', None) or '']
        if floor<10 and any(m.split('.')[0]=='fastai' for m in mods): yield o.lineno, 'a value knows nothing of fastai'
        if floor<10 and getattr(o, 'id', '') in ('Learner','Callback'): yield o.lineno, f'a value knows no {o.id}'
        called = o.func.attr if isinstance(o, ast.Call) and isinstance(o.func, ast.Attribute) else ''
        if 40<=floor<90 and trains.fullmatch(called): yield o.lineno, f'nothing is trained here: `.{called}(`'

def off_floor(piece):
    mod,t = home(piece.path),parsed(piece)
    if not t: return
    yield from wrong_floor(t, mod, piece.kind, floors)
    if piece.kind=='export': yield from wrong_storey(t, floors[mod])

# --- what is held, by file

def each(check, kinds):
    "A check of pieces, made one of files"
    def f(path): return [f'{p.at(i)}: {what}' for p in pieces(path) if p.kind in kinds for i,what in check(p)]
    return f

def many_long(where, pieces, share):
    n,long = long_share(pieces)
    few = long<=max(1, n/share)
    return [] if few else [f'{where}{long} of {n} lines have over {limits["long"]} characters, of 1 in {share} at most']
def long_lines(path): return each(too_long, (*any_code,'prose','text'))(path)+many_long(f'{path}: ', code(path), 10)
def room_size(path):
    n = len((root/lib/f'{home(path)}.py').read_text(encoding='utf-8').splitlines())
    return [f'{lib}/{home(path)}.py: {n} lines, of {limits["room"]} at most'] if n>limits['room'] else []
def lessons(path): return [f'{path}: {o}' for o in late_lesson(pieces(path))]
def own_name(path):
    exps = [m for p in code(path) for m in re.findall(r'^#\|\s*default_exp:?\s+(\S+)', p.source, re.M)]
    return [] if exps==[home(path)] else [f'{path}: exports {exps}, not the module of its own name']

in_rooms = list(rooms.values())
checks = dict(
    lines=(long_lines, hand_written+modules+others),
    one_statement_a_line=(each(statements_beside, any_code), hand_written),
    functions=(each(too_big, any_code), hand_written),
    expressions=(each(too_deep, any_code), hand_written),
    private_names=(each(private_of_others, any_code),
                   [p for p in hand_written if p[:6]!='tests/']),   # those may look inside
    export_cells=(each(cell_too_full, ['export']), in_rooms),
    room_size=(room_size, in_rooms),
    lesson_first=(lessons, [p for k,p in rooms.items() if k!='all']),      # `all` collects the others
    floors=(each(off_floor, any_code), in_rooms),
    own_name=(own_name, in_rooms))

@pytest.mark.parametrize('rule,path', [(k,p) for k,(_,ps) in checks.items() for p in ps])
def test_house(rule, path):
    bad = checks[rule][0](path)
    assert not bad, '\n'+'\n'.join(bad)

def all_long(): return many_long('', [p for f in hand_written for p in code(f)], 50)
def crowded():
    "Numbers that more than three rooms share; experiments that were declared stand side by side, as many as there are"
    ns = [int(n) for n in floors.values() if int(n) not in (35,36)]
    return [f'{ns.count(n)} rooms have the number {n:02d}' for n in sorted(set(ns)) if ns.count(n)>3]
def needless():
    "Those of `wordy` that are within every limit, or not there"
    fs = {f'{home(p)}.{n}':f for p in in_rooms for _,t in trees(p) for n,f in functions(t)}
    return [f'`{n}` stands in `wordy` and need not' for n in wordy if n not in fs or not over('', fs[n])]

def test_few_lines_are_long(): assert not all_long()
def test_few_rooms_share_a_number(): assert floors and not crowded()
def test_rooms_of_one_number_stand_in_the_order_of_the_listing():
    fs = floors_of(['18_journal','18_display','19_rounds'])
    assert fs['display']<fs['journal']<fs['rounds'] and allowed(fs['journal'], fs['display'])
    assert not allowed(fs['display'], fs['journal'])
    assert allowed(24.1, 24) and not allowed(24, 24.1) and not allowed(25.1, 24)    # leaves of one number are one
def test_exceptions_are_needed(): assert not needless()

# --- each rule, broken once

def cell(source, kind='export', path='nbs/50_toy.ipynb', shown=False, i=0): return Piece(path, kind, source, i, shown)
def body(n): return 'def f():\n    "Says what"\n'+'    a = 1\n'*n
def args(n): return 'def f(self, '+', '.join(f'a{i}' for i in range(n))+', **kwargs): pass'
filled = '\n'.join(f'a{i} = 1' for i in range(28))

@pytest.mark.parametrize('check,bad,good', [
    (too_long, cell('#'*141), cell('#'*140)),
    (too_long, cell('#'*141, 'prose'), cell('#'*140, 'prose')),
    (too_long, cell('#'*101, 'lesson'), cell('#'*100, 'lesson')),
    (statements_beside, cell('a = 1; b = 2'), cell('if a: b = ";"')),
    (statements_beside, cell('a = 1; b = 2', 'lesson'), cell('%matplotlib inline; x\nplot();', 'lesson')),
    (statements_beside, cell('plot();'), cell('plot();  # nothing below', 'lesson')),
    (too_big, cell(body(21)), cell(body(20))),
    (too_big, cell('class A:\n    def f(self):\n'+'        a = 1\n'*21), cell('class A:\n'+'    a = 1\n'*21)),
    (too_big, cell('def f():\n    def g():\n        "Says what"\n'+'        a = 1\n'*20),
              cell('def f():\n    def g():\n        "Says what"\n'+'        a = 1\n'*19)),
    (too_big, cell('def f():\n'+'\n'*29+'    pass'), cell('def f():\n'+'\n'*28+'    pass')),
    (too_big, cell(args(9)), cell(args(8))),
    (too_deep, cell('max([max([a for a in b]) for b in c])'), cell('[max([a for a in b]) for b in c]')),
    (too_deep, cell('f(x, y=[{a for a in b} for b in c])'), cell('f([a for a in b], [a for a in b])')),
    (too_deep, cell('f(lambda c: {b:[a for a in b] for b in c})'), cell('[[a for a in b] for b in c].f()')),
    (too_deep, cell('1 if a else 2 if b else 3 if c else 4'), cell('1 if a else 2 if b else 3')),
    (cell_too_full, cell('#| export\n'+filled), cell('#| export\n'+filled[:-8])),
    (cell_too_full, cell(body(29)), cell(body(28))),
    (cell_too_full, cell(filled), cell('import a\n'*28+filled[:-8])),
])
def test_a_rule_sees_what_breaks_it(check, bad, good):
    assert len(list(check(bad)))==1
    assert not list(check(good))

@pytest.mark.parametrize('bad', ['from .core import _x', f'from {lib}.core import a,_x as y', f'from {lib} import _x',
    f'import {lib}.core as c\nc._x', f'import {lib}.core\n{lib}.core._x', f'from {lib} import core\ncore._x',
    'from . import core\ncore._x', 'learn.lottery._o', 'self._o', "getattr(a, '_o')", 'a._o = 1', f'from {lib}.core import A\nA()._o'])
def test_private_names(bad):
    def broken(s, own=()): return list(reaches_over(ast.parse(s), own, ({'_x':['core']},{'_o':['core']})))
    assert len(broken(bad))==1
    if '_o' in bad: assert not broken(bad, {'_o'}), 'a room may use what its classes define'
    public,dunder = (re.sub(r'\b_([xo])\b', o, bad) for o in (r'\1',r'__\1__'))
    others = 'from torch import _C', 'import a\na._x', 'self._x', "getattr(a, '_of_torch')"
    for good in (public, dunder, *others): assert not broken(good), good

@pytest.mark.parametrize('s', ['_x = 1','_x,y = 1,2','def _x(): pass','class _x: pass','try: _x = 1\nexcept E: pass'])
def test_private_names_of_modules(s):
    assert set(of_module(ast.parse(s)))=={'_x'} and not set(of_objects(ast.parse(s)))
    assert not set(of_module(ast.parse(s.replace('_x','x'))))

@pytest.mark.parametrize('s', ['class A:\n    _x:int = 1', 'class A:\n    def f(self): self._x = 1',
    'class A:\n    def _x(self): pass', '@patch\ndef _x(self:Learner): pass'])
def test_private_names_of_objects(s):
    assert set(of_objects(ast.parse(s)))=={'_x'} and not set(of_module(ast.parse(s)))
    assert not set(of_objects(ast.parse(s.replace('_x','x'))))

toy_floors = dict(core=0, masks=1, callback=11, shrink=23, deploy=24, analysis=26, growth=22, plots=40, all=90)
@pytest.mark.parametrize('mod,bad,good', [
    ('masks', 'from .masks import *', 'from .core import *'),
    ('masks', f'import {lib}.callback', f'import {lib}.core'),
    ('core', f'from {lib} import masks', 'from torch import masks'),
    ('deploy', 'from .growth import *', 'from .shrink import *'),
    ('shrink', 'from .growth import *', 'from .callback import *'),
    ('growth', 'from .lost import *', 'from .callback import *'),
    ('plots', 'def f():\n    from .all import *', 'def f():\n    from .analysis import *'),
])
def test_floor(mod, bad, good):
    def broken(s, kind='export'): return list(wrong_floor(ast.parse(s), mod, kind, toy_floors))
    assert len(broken(bad))==1 and not broken(good)
    assert not broken(f'from {lib}.{mod} import *', 'lesson')

@pytest.mark.parametrize('floor,bad', [
    (0,'from fastai.learner import x'), (9,'import fastai.basics'), (5,'def f(l:Learner): pass'),
    (1,'class A(Callback): pass'), (40,'learn.fit(1)'), (42,'learn.fit_lottery(1)'), (40,'loss.backward()')])
def test_storey(floor, bad):
    def broken(s, floor): return list(wrong_storey(ast.parse(s), floor))
    assert len(broken(bad, floor))==1 and not broken(bad, 13)
    assert not broken('from fastcore.all import *\nplay()\nfit_amount(1)', floor)

def test_lesson_comes_first():
    shown,silent = ('lesson',True),('lesson',False)
    def late(*kinds): return list(late_lesson([cell('', k, shown=o, i=i) for i,(k,o) in enumerate(kinds)]))
    assert not late(*[silent]*4, shown) and late(*[silent]*5, shown)
    assert late(silent) and late(('hidden',True), ('export',True))

def test_cells_are_told_apart():
    kinds = {'#| export\na':'export', '#| exporti\na':'export', '#| hide\na':'hidden', '#| default_exp a':'hidden',
        '#| fig-cap: A\na':'lesson', 'a # export':'lesson', '#| eval: false\na':'lesson'}
    assert {s:kind_of(s) for s in kinds}==kinds

def test_what_a_cell_shows():
    def out(**kw): return dict(outputs=[dict(kw)])
    printed = out(output_type='stream', name='stdout')
    assert seen(printed,'') and seen(out(output_type='display_data'),'')
    assert not seen(printed,'#| output: false')
    assert not seen(dict(outputs=[]),'') and not seen(out(output_type='stream', name='stderr'),'')

def test_shares():
    lines = [121*'#', 120*'#', '', 140*'#']
    assert long_share([cell('\n'.join(lines))])==(3,2)
    few = [cell('\n'.join([121*'#']*n+['a']*98)) for n in (1,2,3)]
    assert [bool(many_long('', [p], 50)) for p in few]==[False,False,True]

def broken(only):
    "Every breach, by rule, so that one can be mended after another; or those of some files"
    for k,(check,paths) in checks.items():
        for p in paths: yield from (f'{k}: {o}' for o in (check(p) if not only or p in only else ()))
    if not only: yield from [*all_long(), *crowded(), *needless()]

if __name__=='__main__':
    bad = list(broken(sys.argv[1:]))
    print(*bad, sep='\n', end='\n' if bad else '')
    if bad: sys.exit(f'the rules of the house are broken in {len(bad)} places')
