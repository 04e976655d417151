"""The pages that put the papers' claims beside our figures: they name their command, follow the figures,
and claim nothing that is not there"""
import ast,html,json,re
from pathlib import Path
import numpy as np,pandas as pd,pytest
from fastai_lottery.experiments import renamed
from fastai_lottery.presets import presets,preset,check_claims
from fastai_lottery.regularised import ways

root = Path(__file__).resolve().parent.parent
folder = root/'nbs'/'results'
every = sorted((root/'nbs'/'papers').glob('*.ipynb'))
pages = [p for p in every if p.stem<'90']       # the others reproduce no figures
files = sorted(folder.glob('*.csv'))
ids = lambda p: p.stem
def cells(p, kind): return [c for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type']==kind]
def src(c): return ''.join(c['source'])
def prose(p): return '\n'.join(map(src, cells(p, 'markdown')))
def read(name):
    f = folder/f'{name}.csv'
    return pd.read_csv(f) if f.exists() else None
def calls(source):
    "The calls in a piece of code, with their names"
    return [(getattr(k.func,'id',''), k) for k in ast.walk(ast.parse(source)) if isinstance(k, ast.Call)]
def texts(call): return [o.value for o in call.args if isinstance(o, ast.Constant)]
def owner(f):
    "The preset whose figures a file has: the longest name that its own begins with"
    return max((n for n in presets if f.stem==n or f.stem.startswith(n+'-')), key=len, default=None)

def test_there_are_pages():
    first = '00_about 01_lenet 02_masks 03_supermasks 04_stability 05_digits 06_rethinking 07_cheap'.split()
    assert [p.stem for p in pages][:len(first)]==first

# --- what a page names

@pytest.mark.parametrize('p', pages, ids=ids)
def test_page_names_its_command(p):
    "A command for each preset that the page has figures of, or of the same lottery; and each preset exists"
    named = re.findall(r'lottery run ([\w-]+)', re.sub(r'lottery run [A-Z]+\b|lottery run …', '', prose(p)))
    if p.stem!='00_about': assert re.search(r'^```sh\nlottery run \S', prose(p), re.M), 'no command'
    for n in named: assert n in presets, f'{n} is no preset'
    in_code = [o for c in cells(p, 'code') for o in calls(src(c))]
    used = {a for n,k in in_code if n in ('claims','ran','preset') for a in texts(k)}
    assert not used-presets.keys()
    for n in used:
        assert n in named or n in prose(p) or n.rpartition('-')[0] in prose(p), f'{n} is not named in the text'
    assert re.search(r'\b\d{4}\.\d{5}\b', prose(p)), 'no paper'

# Figures of 1905.01067 that nobody has checked, so that they must not stand here as the paper's
unverified = '79.3 96.4 97.8 97.7 22.3 37.4 64.4 66.3 65.0 69.2 23.7 39.7 65.4 66.2 71.7 75.4 24.0 65.3 76.3 78.3'.split()
no = re.compile(rf"(?<![\d.])(?:{'|'.join(map(re.escape, unverified))})(?![\d])")

@pytest.mark.parametrize('p', every, ids=ids)
def test_no_unverified_figure_in_a_page(p):
    assert no.search('reaches 79.3 %') and not no.search('98.0 179.3 79.31')
    every_cell = [src(c) for c in json.loads(p.read_text(encoding='utf-8'))['cells']]
    assert not (got := [m[0] for s in every_cell for m in no.finditer(s)]), got

# --- the figures

cols = ['arm','round','density','kept','es_iteration','es_test_accuracy','test_accuracy','iterations','seconds',
        'mask_hash','seed']

def check_measures(p, df):
    assert {'arm','round','seed'} <= {*df}
    todo = {(a,k) for k,a in p.todo()[1]}
    assert set(zip(df.arm, df['round'])) <= todo, 'measures that the preset does not have'
    assert any(todo=={*zip(g.arm, g['round'])} for _,g in df.groupby('seed')), 'no seed has all measures'
    for c in [c for c in df if 'accuracy' in c]: assert df[c].dropna().between(0, 1).all(), c

def check_trainings(p, df, dense_only):
    assert not {*cols}-{*df}
    assert not df.duplicated(['seed','arm','round']).any()
    assert df[['density','es_test_accuracy','es_iteration']].notna().all().all()
    assert df.es_test_accuracy.between(0, 1).all() and df.density.between(0, 1).all()
    assert {*df.arm} <= {'dense','ticket',*p.controls,*p.lotteries}, 'arms that the preset does not have'
    want = {('dense',0)} if dense_only else {('dense',0), *(('ticket',k) for k in range(1, p.settings['rounds']+1))}
    assert any(want <= {*zip(g.arm, g['round'])} for _,g in df.groupby('seed')), 'no seed has played all rounds'

@pytest.mark.parametrize('f', files, ids=ids)
def test_result_file(f):
    "Known preset, the columns, values that can be, no row twice, and one seed at least that is complete"
    name,df = owner(f),pd.read_csv(f)
    assert name, f'{f.name} belongs to no preset'
    if 'random' not in preset(name).controls: df = renamed(df)
    if f.stem.endswith('-measures'): check_measures(preset(name), df)
    else: check_trainings(preset(name), df, f.stem.endswith('-dense'))    # more seeds of the dense net alone

@pytest.mark.parametrize('p', sorted((root/'nbs').rglob('*.ipynb')), ids=ids)
def test_experiments_have_names(p):
    "No number that only we know, as in `E13`, stands in a page, its code or its outputs"
    number = re.compile(r"[\s'\"`>]E\d{1,2}\b")
    assert number.search("only='E7'") and number.search('>E3 random')
    for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
        outs = [o.get('data', {'text/plain':o.get('text','')}) for o in c.get('outputs', [])]
        for s in (src(c), *(''.join(v) for o in outs for k,v in o.items() if k[:5]=='text/')):
            assert not (m := number.search(s)), s[max(m.start()-60,0):m.end()+60]

# --- the tables

def want_rows(names, only):
    "Rows of `claims(...)`, from the files: made here again, without the page's own code; none where nothing was run"
    rows = []
    for n in names:
        df,ms = read(n),read(f'{n}-measures')
        if df is None and ms is None: continue
        for e,o in check_claims(n, df, ms).iterrows():
            if not e.startswith(only): continue
            cols = 'claim paper ours tolerance n p verdict'.split()
            rows.append({c:str(o[c]) for c in cols})
    return rows

def plain(x): return html.unescape(re.sub(r'<[^>]+>', '', x)).strip()
def shown_as(c, kind): return next((''.join(o['data'][kind]) for o in c['outputs'] if kind in o.get('data', {})), '')

def stored_rows(c):
    "The rows of a stored table, its last seven columns by name; none where it is said that nothing was run"
    text = shown_as(c, 'text/html')
    if not text: return [] if 'Not run' in shown_as(c, 'text/markdown') else None
    head,body = re.search(r'<thead>(.*)</thead>.*<tbody>(.*)</tbody>', text, re.S).groups()
    names = [plain(x) for x in re.findall(r'<th[^>]*>(.*?)</th>', head, re.S)]
    cells = [[plain(x) for x in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r, re.S)]
             for r in re.findall(r'<tr>(.*?)</tr>', body, re.S)]
    cols = [n for n in names if n in ('claim','paper','ours','tolerance','n','p','verdict')]
    cols = ['claim',*[n for n in cols if n!='claim']]     # the rows' name, whichever row of the head has it
    rows = [dict(zip(cols, r[-7:])) for r in cells]
    return [r for r in rows if r['verdict'] not in ('not run','no figures yet')]

tables = [(p,i,c) for p in pages for i,c in enumerate(cells(p, 'code')) if re.match(r"claims\('", src(c))]

@pytest.mark.parametrize('p,i,c', tables, ids=[f'{p.stem}-{i}' for p,i,_ in tables])
def test_verdicts_in_step_with_figures(p, i, c):
    "A page whose table is older than the figures, or than the claims, fails: run it again"
    call = ast.parse(src(c)).body[0].value
    names,only = [o.value for o in call.args],next((ast.literal_eval(k.value) for k in call.keywords if k.arg=='only'), '')
    assert stored_rows(c)==want_rows(names, only), f'{p.name} is older than the figures: run it and store its outputs'

thread = root/'nbs'/'papers'/'99_the_thread.ipynb'
told = ('moving-digits seeds-digits seeds-mnist seeds-series combining-mnist regularised-digits halves-digits halves-mnist '
        'forum-digits inits-vgg-digits inits-resnet-digits cheap-mnist-4k-confirm lm-gpt '
        'regularised-mnist bert-tiny lm-awd moving-mnist-4k').split()
@pytest.mark.parametrize('n', told)
def test_thread_in_step_with_figures(n):
    "Interval and seeds of the comparison that each of these declares stand in the thread's answers"
    o = check_claims(n, read(n), read(f'{n}-measures')).iloc[0]
    said = ' '.join(shown_as(c, 'text/markdown') for c in cells(thread, 'code')).replace('\u00a0',' ').replace('−','-')
    want = f"{re.search(r'[(].*?[)]', o.ours)[0]}; n = {o.n}"
    assert want in said, f'{want} is not there: run the page and store its outputs'

@pytest.mark.parametrize('p', pages[1:], ids=ids)
def test_page_has_a_verdict_table_and_a_figure(p):
    assert any(q==p for q,_,_ in tables)
    assert any('#| fig-cap:' in src(c) for c in cells(p, 'code'))

in_a_line = re.compile(r'Of (\d+) claims?: ([^;.]*)[;.]')
@pytest.mark.parametrize('p', pages[:6], ids=ids)
def test_page_says_how_many_claims_came_out(p):
    "And the numbers of that line add up"
    said = [shown_as(c, 'text/markdown') for c in cells(p, 'code') if re.search(r'^outcome\(', src(c), re.M)]
    assert said and any('Of ' in o for o in said)
    for m in filter(None, map(in_a_line.search, said)):
        assert int(m[1])==sum(map(int, re.findall(r'(\d+) [a-z]', m[2])))

def test_interval_and_verdict_agree():
    "Of every claim with figures: what is significant has an interval off the bound, and what is not has it on it"
    n = 0
    for name in presets:
        if not presets[name].claims: continue
        for _,o in check_claims(name, read(name), read(f'{name}-measures')).iterrows():
            m = re.search(r'\(([-\d.e]+) to ([-\d.e]+)\)', o.ours)
            if not m or o.verdict=='too few seeds': continue
            lo,hi = map(float, m.groups())
            verdict = o.verdict.removesuffix(', provisional')
            bound = 1 if o.test.startswith('a / b') else 0
            n += 1
            if 'a − b > 0' in o.test or 'a / b > 1' in o.test:
                assert (lo>bound-.006)==(verdict in ('reproduced','direction only')) or abs(lo-bound)<.01, o.to_dict()
            if 'TOST' in o.test and verdict=='better': assert lo>0
            if verdict=='opposite': assert not lo<=bound<=hi
    assert n>50

def test_claims_are_of_presets():
    "A name that is none would drop its claims in silence"
    from fastai_lottery import claims
    assert claims._claims and not claims._claims.keys()-presets.keys()
    assert {n for n,p in presets.items() if p.claims}==claims._claims.keys()

@pytest.mark.parametrize('n', [n for n,p in presets.items() if p.claims])
def test_no_figures_no_claims(n): assert not len(check_claims(n)) and not len(check_claims(n, None, pd.DataFrame()))

def test_each_claim_is_on_a_page():
    "Every preset with claims stands in some table"
    shown = {o.value for _,_,c in tables for o in ast.parse(src(c)).body[0].value.args}
    assert shown >= {n for n,p in presets.items() if p.claims}

# --- pages without figures, and with other ones

every_mask = 'random large_final large_final_same_sign magnitude_increase magnitude_increase_same_sign'.split()
bases = 'init','signed constant'

def stability(r):
    both = [(w,m) for w in ('data order','pruning') for m in ('ticket','random')]
    return [dict(what=w, mask=m, l2=1+r(), angle=r(), test_accuracy=r(), es_test_accuracy=r()) for w,m in both]
def instability(r):
    return [dict(mask='dense', barrier_pp=r(), barrier_loss=r(), error_1=r(), error_2=r(), error_max=r())]
def heuristic(r):
    return [dict(prunes=i, density=.8**i, mask=m, base=b, accuracy=r(), test_accuracy=r())
            for i in (1,2,3) for b in bases for m in every_mask]
def learned(r): return [dict(base=b, rescale=d, accuracy=r(), test_accuracy=r()) for b in bases for d in (False,True)]
def declared(r): return [dict(claim='x', recipe='going_on', margin=.15)]
def whose_mask(r): return [dict(overlap=r(), chance=r())]
def starts(r):
    base,at = dict(persistence=.02, ar=.015),[f'{c}_{e}' for e in (2,4,8,16) for c in ('train','valid','pruned')]
    def one(what, i, o, **kw): return dict(what=what, init=i, order=o, valid=r(), test=r(), generalises=int(r()<.3), **base, **kw)
    own = [one('start', i, i, train=r(), **{c:r() for c in at}) for i in range(4)]
    crossed = [one('crossed', i, o) for i in range(2) for o in range(2) if i!=o]
    return own+crossed+[dict(what='barrier', which=w, init=0, order=1, barrier=r()) for w in ('good','bad','both')]
def best_of(r):
    def one(what, **kw): return dict(what=what, accuracy=r(), test_accuracy=r(), iterations=84, **kw)
    return [*(one('start', init=i, first=2) for i in range(3)), *(one(w) for w in ('best','long','ensemble'))]
def counting(r): return [dict(model='trigram', valid_bits=9+r(), test_bits=9+r()), dict(model='1 each side', valid=.5, test=.5)]
def parts(r): return [dict(layer=0, part='q', kept=1, total=2, density=r())]
def heads(r):
    return [dict(mask=m, layer=l, head='all', loss=r(), rise_bits=r()) for m in ('dense','ticket','reinit','shuffle') for l in (0,'all')]
def one_shot(r):
    from fastai_lottery.regularised import ways
    return [dict(way=w, left=o, density=o, accuracy=r(), test_accuracy=r()) for w in ways for o in (1,.5,.2,.1,.05,.02)]
def halves(r): return [dict(mask=m, density=.135, accuracy=r(), test_accuracy=r()) for m in ('own half','other half','random')]
def robustness(r):
    kinds = [('clean',0),*[(c,s) for c in ('noise','blur','shift','contrast') for s in range(1, 6)]]
    return [dict(data=d, corruption=c, strength=s, accuracy=r(), ece=r(), n=9) for d in ('valid','test') for c,s in kinds]
made_up = dict(one_shot=one_shot, halves=halves, robustness=robustness)
made_up |= dict(starts=starts, best_of=best_of, stability=stability, instability=instability, heuristic=heuristic,
               learned=learned, declared=declared, whose_mask=whose_mask, counting=counting, parts=parts, heads=heads)

def all_trainings(p):
    "Arm and round of each training of a preset"
    rounds = range(1, p.settings['rounds']+1)
    own = [('dense',0), *[('ticket',k) for k in rounds]]
    return own+[(a,k) for k,a in p.todo()[0]]+[(a,k) for a in p.lotteries for k in rounds]

def synthetic(p, seeds, arms=None):
    "Results and measures of a preset as they might come out"
    rng = np.random.default_rng(0)
    sizes = dict(units=30, units_dense=60, macs=4e4, macs_dense=1e5) if p.cb.get('units')=='channels' else {}
    def row(s, a, k):
        return {**dict.fromkeys(cols, 1), **sizes, 'arm':a, 'round':k, 'seed':s, 'density':.8**k, 'prunable':266200,
                              'es_test_accuracy':.9+.01*rng.random(), 'es_test_loss':1+.01*rng.random(),
                              'es_iteration':rng.integers(1, 600)}
    df = pd.DataFrame([row(s, a, k) for s in range(seeds) for a,k in all_trainings(p) if arms is None or a in arms])
    done = [(s,k,a) for s in range(seeds) for k,a in p.todo()[1]]
    return df,pd.DataFrame([dict(arm=a, round=k, seed=s, **o) for s,k,a in done for o in made_up[a](rng.random)])

def verdicts_of(p, where):
    "Run a page, all but its trainings, with the figures in folder `where`; its verdict tables"
    import matplotlib.pyplot as plt
    ns,got = {},[]
    for c in map(src, cells(p, 'code')):
        if re.search(r'^#\|\s*eval:\s*false', c, re.M): continue      # nothing of the figures: its output is stored
        c = re.sub(r'^#\|.*\n?', '', c, flags=re.M)
        if 'play_seed' in c or re.search(r'\btiny\(|\bgot\b', c): continue
        *first,last = ast.parse(c).body or [ast.Pass()]
        exec(compile(ast.Module(first, []), p.name, 'exec'), ns)
        if isinstance(last, ast.Expr): v = eval(compile(ast.Expression(last.value), p.name, 'eval'), ns)
        else:
            exec(compile(ast.Module([last], []), p.name, 'exec'), ns)
            v = None
        if 'folder' in ns: ns['folder'] = where
        if isinstance(v, pd.DataFrame) and 'verdict' in v: got += v.verdict.str.removesuffix(', provisional').tolist()
        plt.close('all')
    return got

@pytest.mark.filterwarnings('ignore:Precision loss')
@pytest.mark.parametrize('how', ['none','one seed','rounds only','some seeds'])
@pytest.mark.parametrize('p', pages, ids=ids)
def test_page_stands_any_figures(p, how, tmp_path):
    "No file, one seed, only the lottery, and several seeds with everything"
    if how!='none':
        for n,q in presets.items():
            if not q.claims and n!='one-shot-digits': continue
            df,ms = synthetic(q, dict([('one seed',1)]).get(how, 3), ('dense','ticket') if how=='rounds only' else None)
            df.to_csv(tmp_path/f'{n}.csv', index=False)
            if len(ms) and how!='rounds only': ms.to_csv(tmp_path/f'{n}-measures.csv', index=False)
    got = verdicts_of(p, tmp_path)
    if p.stem=='00_about': return
    known = {'reproduced','better','direction only','not shown','opposite','outside','too few seeds'}
    if how=='none': assert {*got} <= {'not run'}
    elif how=='one seed': assert {*got}=={'too few seeds'}
    else: assert {*got} <= known|({'no figures yet'} if how=='rounds only' else set())
    if how=='some seeds': assert got
