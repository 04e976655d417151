"Figures by name: which way is better, what is shown in percent, what n counts, and tables for a paper"
import io,json,math,re
from functools import partial,wraps
import numpy as np,pandas as pd,pytest
from nets import *
from fastai.callback.all import *
from fastai.learner import AvgMetric,Metric
from fastai.metrics import *
from fastai_lottery.arms import *
from fastai_lottery.claims import *
from fastai_lottery.verdict import *
from fastai_lottery.claims import Figures
from fastai_lottery.verdict import came_out
from fastai_lottery.plots import *
from fastai_lottery.statistics import *
from fastai_lottery.statistics import Shown,is_fraction,is_lower,lower_of,own_lower,scale_of
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

def named(o):
    "A name of a case, the same in every process"
    return re.sub(r' at 0x[0-9a-f]+', '', str(o))


# --- which way is better

def test_higher_is_lower_the_other_way_round():
    assert lower_of(True) is lower_of(higher=False) is True and lower_of(False) is lower_of(higher=True) is False
    assert lower_of() is None and lower_of(True, False) and not lower_of(False, True)
    for v in (True, False):
        with pytest.raises(ValueError, match=f'lower={v} and higher={v} contradict each other'): lower_of(v, v)

def wer(pred, targ): return (pred.argmax(-1)!=targ).float().mean()
def told(higher):
    "A metric of one's own that says which way is better, as torchmetrics' do"
    def wer(pred, targ): return (pred.argmax(-1)!=targ).float().mean()
    wer.higher_is_better = higher
    return wer

class Own(Metric):
    higher_is_better = False
class Holds(Metric):
    def __init__(self, metric): self.metric = metric
class Torchs(torch.nn.Module):
    higher_is_better = True
    def __init__(self):
        super().__init__()
        self.compute = wraps(self.compute)(lambda: self.compute())    # as torchmetrics does
    def compute(self): return 0.

@pytest.mark.parametrize('m,lower', [
    (told(False), True), (told(True), False), (partial(told(False)), True), (AvgMetric(told(False)), True),
    (AvgMetric(partial(partial(told(True)))), False), (AccumMetric(told(False)), True), (Own(), True),
    (Holds(Torchs()), False),
    (ValueMetric(Torchs().compute, 'top'), False), (wer, None), (AvgMetric(wer), None), (accuracy, None), (F1Score(), None),
    (None, None),
    (told(None), None), (told('yes'), None)], ids=lambda m: type(m).__name__)
def test_a_metric_may_say_it_itself(m, lower): assert own_lower(m) is lower

# --- percent

@pytest.mark.parametrize('name,k',
                         dict(accuracy=100, es_test_accuracy=100, test_f1_score_2=100, error_rate=100, valid_loss=1,
                                        perplexity=1, test_mae=1, es_iteration=1, wer=1).items())
def test_percent_is_for_fractions(name, k):
    assert scale_of(name)==k and scale_of(name, 7)==7 and is_fraction(name)==(k==100)

# --- n is seeds

def seeds(n=3, rounds=(0,1), **more):
    rows = [dict(seed=s, round=r, accuracy=.9+s/100-r/50, loss=1.5-r) for s in range(n) for r in rounds]
    return pd.DataFrame(rows).assign(**more)

def test_rows_of_one_seed_are_no_replicates():
    df = seeds(net='lenet')
    with pytest.raises(ValueError,
                       match=r"2 rows are of seed 0 where net='lenet'.*They differ in 'round': group by that too"):
        summarise(df, 'net', 'accuracy')
    assert summarise(df, ['net','round'], 'accuracy').n.tolist()==[3,3]
    within = df.groupby(['net','seed'], as_index=False).mean(numeric_only=True)
    assert summarise(within, 'net', 'accuracy').n.tolist()==[3]

def test_rows_of_one_seed_are_told_apart_by_what_tells_them_apart():
    both = pd.concat([seeds(arm='ticket'), seeds(arm='reinit')])
    with pytest.raises(ValueError, match="4 rows are of seed 0 .*differ in 'round', 'arm': group"):
        summarise(both.assign(x=1), 'x', 'loss')
    with pytest.raises(ValueError, match="2 rows are of seed 0 where round=0.*differ in 'arm': group"):
        summarise(both, 'round', 'loss')
    with pytest.raises(ValueError, match='differ in nothing: the rows are there twice'):
        summarise(pd.concat([seeds(), seeds()]), ['round'], 'accuracy')

def test_a_seed_by_itself_and_another_name():
    with pytest.raises(ValueError, match="2 rows are of seed 0, and"): summarise(seeds(), 'seed', 'accuracy')
    df = seeds().rename(columns=dict(seed='replicate'))
    assert summarise(df, 'round', 'accuracy').n.tolist()==[3,3]    # no seed: each row is a replicate
    with pytest.raises(ValueError, match='2 rows are of replicate 0'):
        summarise(df.assign(x=1), 'x', 'accuracy', seed='replicate')
    with pytest.raises(ValueError, match=r"no columns \['rep'\]"): summarise(df, 'round', 'accuracy', seed='rep')

# --- tables for a paper

def compiles(tex):
    "Nothing that LaTeX stops at: specials escaped, no sign that it lacks, braces, dollars and environments in pairs"
    bare = re.sub(r'\\[&%$#_{}\\]', '', tex)
    assert bare.isascii(), set(c for c in bare if not c.isascii())
    assert bare.count('{')==bare.count('}') and bare.count('$')%2==0
    math_out = ''.join(bare.split('$')[::2])
    assert not re.search(r'[%#_^|<>]', re.sub(r'\\begin\{tabular\}\{[lrc]+\}', '', math_out)), math_out
    assert re.findall(r'\\begin\{(\w+)\}', tex)==re.findall(r'\\end\{(\w+)\}', tex)[::-1]
    cols = len(re.search(r'\\begin\{tabular\}\{([lrc]+)\}', tex)[1])
    for line in tex.splitlines():
        if line.endswith(r'\\') and 'multicolumn' not in line: assert len(re.findall(r'(?<!\\)&', line))==cols-1, line

odd = 'a_1 & 5 % of #3 ~ ^ \\ {x} $y$ ± − × ≥ ≤ < > | → – — ½ · α \u00a0 \u202f'

@pytest.mark.parametrize('df', [
    pd.DataFrame({odd:[odd,'b'], 'n':[1,2.5]}), pd.DataFrame({'x':[1]}, index=pd.Index([odd], name=odd)),
    pd.DataFrame({'x':[1,2]}, index=pd.MultiIndex.from_tuples([(odd,1),('b_2',2)], names=['a_b',None])),
    pd.DataFrame([[1]], columns=pd.Index([odd], name=odd)), pd.DataFrame({1:[None,math.nan]})], ids=range(5))
def test_a_table_in_latex(df):
    compiles(Shown(df).to_latex())
    assert Shown(df).to_latex(escape=False)==df.to_latex(escape=False)

def test_a_table_in_a_file(tmp_path):
    t,s = Shown({'a_b':['1 %']}),io.StringIO()
    t.to_latex(tmp_path/'t.tex')
    t.to_latex(s, index=False)
    assert (tmp_path/'t.tex').read_text()==t.to_latex() and s.getvalue()==t.to_latex(index=False)
    assert type(t[['a_b']]) is Shown and isinstance(t, pd.DataFrame)

# --- claims: which way they go, and what was tested

a,b = [.93,.95,.94],[.91,.92,.93]
def row(*args, f=claim_difference, **kw): return verdicts([f('a', *args, **kw)]).iloc[0]

def test_without_a_name_a_is_larger():
    c = claim_difference('more', '', a, b)
    assert c.want==(0,math.inf) and c.mean==pytest.approx(2) and c.unit=='pp'
    assert c.test=='a − b > 0 (paired t, one-sided)'
    assert claim_difference('more', '', a, b, (.25,.75)).p==c.p

@pytest.mark.parametrize('kw', [dict(of='test_error_rate'), dict(lower=True), dict(higher=False),
                                dict(of='wer', lower=True, scale=100), dict(want=(-math.inf,0)), dict(want=(-3,-1)),
                                dict(of='error_rate', want=(-3,-1), lower=True)], ids=named)
def test_lower_is_better(kw):
    c,up = claim_difference('a', '', b, a, **kw),claim_difference('a', '', a, b)
    assert c.want[1]<=0 and c.mean==-up.mean and c.p==pytest.approx(up.p) and c.test.startswith('a − b < 0 ')
    d = claim_difference('a', '', a, b, **kw)
    assert d.p==pytest.approx(1-up.p), 'the other way round is the opposite'

def test_an_unknown_name_is_asked_about():
    with pytest.raises(ValueError, match=r"is 'wer' better when lower.*lower=True or higher=True"):
        claim_difference('a', '', a, b, of='wer')
    assert claim_difference('a', '', a, b, of='wer', higher=True, scale=100).want==(0,math.inf)
    assert claim_difference('a', '', a, b, (0,9), of='wer').unit==''
    with pytest.raises(ValueError, match='contradict each other'):
        claim_difference('a', '', a, b, lower=True, higher=True)
    for want,lower in (((0,9),True), ((-9,0),False)):
        with pytest.raises(ValueError, match=f'lower={lower} the opposite'):
            claim_difference('a', '', a, b, want, lower=lower)
    with pytest.raises(TypeError): claim_difference('a', '', a, b, upper=True)

@pytest.mark.parametrize('paper,kw', [
    ('< 0', {}), ('<0', {}), ('≤ 0', {}), ('<= 1', {}), ('−.5 pp', {}), ('-2 pp', {}),
    ('> 2 pp', dict(want=(.5,1))), ('>0', dict(lower=True)),
    ('+.5 pp', dict(of='error_rate')), ('< -5', dict(want=(-3,-1))), ('≥ 1,000', dict(want=(0,999)))], ids=named)
def test_a_text_that_reads_as_another_test(paper, kw):
    with pytest.raises(ValueError, match='reads as a test, and tested is a − b [<>] 0'):
        claim_difference('a', paper, a, b, **kw)
    with pytest.raises(ValueError, match='reads as a test'):
        claim_difference('a', paper, [], [], **kw)    # before there are figures

@pytest.mark.parametrize('paper,kw', [
    ('> 0', {}), ('> .3 pp', {}),
    ('> 0.3 pp', dict(want=(.15,.45))), ('+.5 pp', dict(want=(.25,.75))), ('yes', {}), ('', {}), ('.5 pp', {}),
    ('< 0', dict(lower=True)), ('−.5 pp', dict(want=(-1,0))), ('≥ 1e-3', dict(want=(0,.1))),
    (.5, {}), ('> 1,000', dict(want=(0,2000)))], ids=named)
def test_a_text_that_says_what_is_tested(paper, kw): assert claim_difference('a', paper, a, b, **kw).paper==paper

def test_texts_of_the_other_kinds():
    for paper in ('< 1','> 0','≤ .3'):
        with pytest.raises(ValueError, match=r'tested is \|a − b\| < 3, with -3 to 3'): claim_match('a', paper, a, b, 3)
    assert row('± 3 pp', a, b, 3, f=claim_match).test=='|a − b| < 3 pp (TOST)' and claim_match('a', '+.1 pp', a, b, 3)
    with pytest.raises(ValueError, match='tested is a / b > 1'): claim_ratio('a', '< 1', a, b)
    with pytest.raises(ValueError, match='tested is a / b < 1'): claim_ratio('a', '> 1', a, b, (.4,.8))
    assert row('> 1', a, b, f=claim_ratio).test=='a / b > 1 (paired t of logarithms, one-sided)'
    for paper,want,says in (('> 1',(-math.inf,2),'mean < 2'), ('< 2',(3,4),'3 < mean < 4'),
                            ('< 1',(0,math.inf),'0 < mean')):
        with pytest.raises(ValueError, match=f'tested is {says}'): claim_value('a', paper, a, want)
    for paper,want in (('< 1 %',(-math.inf,2)), ('> 3',(3,4)), ('< 4',(3,4)), ('-1',(-2,0))):
        assert claim_value('a', paper, a, want)

@pytest.mark.parametrize('f,more', [(claim_difference,()), (claim_match,(3,))])
def test_claims_show_percent_of_fractions_alone(f, more):
    mae = [12.1,12.4,12.2],[12.9,12.8,13.1]
    with pytest.raises(ValueError, match=r"12.1 is no fraction of a whole.*of='test_mae', or scale=1"):
        f('a', '', *mae, *more)
    for kw in (dict(of='test_mae'), dict(scale=1)):
        c = f('a', '', *mae, *more, **kw)
        assert c.unit=='' and abs(c.mean+.7)<.01 and 'pp' not in c.test
    c = f('a', '', a, b, *more, of='es_test_accuracy')
    assert (c.unit,c.mean)==('pp',pytest.approx(2)) and f('a', '', a, b, *more)[:11]==c[:11]
    assert f('a', '', a, b, *more, scale=10).mean==pytest.approx(.2)
    assert f('a', '', a, b, *more, unit='points').unit=='points'
    assert math.isnan(f('a', '', [.9,math.nan], [.8,.7], *more).mean)

def test_a_value_by_name():
    c = claim_value('a', '', a, (90,100), of='test_accuracy')
    assert (c.mean,c.unit)==(pytest.approx(94),'%')
    assert claim_value('a', '', [126.], (100,130), of='perplexity').mean==126
    assert claim_value('a', '', a, (.9,1)).mean==pytest.approx(.94)

@pytest.mark.parametrize('other,paper', [('outside','yes'), ('opposite','yes')])
def test_the_verdict_of_the_opposite(other, paper):
    x,y = np.array([.5,.51,.5,.52]),np.array([.9,.92,.93,.9])
    cs = dict(opposite=[claim_difference('a', '', x, y), claim_ratio('a', '', x, y),
                        claim_difference('a', '', y, x, lower=True)],
              outside=[claim_match('a', '', x, y, 1), claim_value('a', '', x, (.6,1))])
    assert set(verdicts(cs[other]).verdict)=={other}

@pytest.mark.parametrize('n,declared,want', [(4,5,'opposite, provisional'), (4,4,'opposite'), (4,None,'opposite'), (2,5,'too few seeds')])
def test_a_verdict_of_fewer_seeds_than_declared_is_provisional(n, declared, want):
    x,y = np.array([.5,.51,.5,.52])[:n],np.array([.9,.92,.93,.9])[:n]
    got = verdicts([claim_difference('a', '', x, y), claim_difference('b', '', x, y+.05)], declared).verdict
    assert got.tolist()==[want]*2
    says = 'Of 2 claims: 2 '+want.split(',')[0]
    assert came_out(got)==says+('; fewer seeds than declared in 2, which are provisional' if 'prov' in want else '')

def arms_of(col, *values, n=4):
    "Arms dense, ticket and reinit with these mean figures in `col`"
    rows = [dict(arm=a, round=r, density=.8**r, seed=s) for a,r in (('dense',0),('ticket',3),('reinit',3)) for s in range(n)]
    noise = np.random.default_rng(0).normal(size=3*n)/100
    return pd.DataFrame(rows).assign(**{col:np.repeat(values, n)*(1+noise)})

def test_a_preset_claims_what_is_better():
    f = Figures(arms_of('es_test_mae', 12.1, 11., 14.))
    c = f.beats('tickets beat re-initialised nets', '', 'ticket',3, 'reinit',3, col='es_test_mae')
    assert c.want==(-math.inf,0) and c.unit=='' and -3.5<c.mean<-2.5 and verdicts([c]).verdict[0]=='reproduced'
    assert f.matches('', '', 'ticket',3, 'dense',0, 2, col='es_test_mae').unit==''
    g = Figures(arms_of('es_test_wer', 12.1, 11., 14.))
    def beats(**kw): return g.beats('', '', 'ticket',3, 'reinit',3, col='es_test_wer', **kw)
    with pytest.raises(ValueError, match="is 'es_test_wer' better when lower"): beats()
    assert beats(lower=True).want==(-math.inf,0) and beats(higher=True).want==(0,math.inf)
    with pytest.raises(ValueError, match='lower=True the opposite'): beats(lower=True, want=(0,9))

def test_rows_of_one_seed_are_no_replicates_in_claims():
    df = arms_of('es_test_accuracy', .9, .92, .8)
    twice = pd.concat([df.assign(trial=0), df[df.arm=='reinit'].assign(trial=1)])
    for f in (compare_arms, show_arms, lambda df: plot_arms(df, 'es_test_accuracy'),
              lambda df: Figures(df).beats('', '', 'ticket',3, 'reinit',3)):
        f(df)
        with pytest.raises(ValueError, match="2 rows are of seed 0 where arm='reinit', round=3.*differ in 'trial'"):
            f(twice)

# --- tables

@pytest.mark.parametrize('col,values,want', [
    ('es_test_accuracy', (.9,.92,.8), '92'), ('test_perplexity', (126,120,200), '1[12]\\d'), ('es_test_mae', (12.1,11,14), '1[01]'),
    ('wer', (.1,.1,.2), '0'), ('test_error_rate', (.1,.1,.2), '(10|9)')])
def test_tables_and_plots_show_the_same_number(col, values, want):
    df = arms_of(col, *values)
    s = show_arms(df, col).ticket.iloc[0].split('\u00a0')[0]
    ax = plot_arms(df, col)
    y = next(l for l in ax.get_lines() if l.get_label()=='winning ticket').get_ydata()[-1]
    assert re.fullmatch(want+r'\.\d\d', s) and s==f'{y:.2f}' and ('%' in ax.get_ylabel())==is_fraction(col)
    assert show_arms(df, col, scale=10).ticket.iloc[0].startswith(f'{10*df[df.arm=="ticket"][col].mean():.2f}')

def test_tables_say_what_they_lack():
    with pytest.raises(ValueError, match="no column 'es_test_accuracy'; it has arm"): show_arms(arms_of('wer', 1, 2, 3))
    with pytest.raises(ValueError, match="no column 'seed'"):
        compare_arms(arms_of('wer', 1, 2, 3).drop(columns='seed'), 'wer')

def test_what_people_are_shown_is_latex_that_compiles():
    df = arms_of('es_test_accuracy', .9, .92, .8).replace('reinit', 're_init & 50 %')
    for t in (show_arms(df), compare_arms(df),
              verdicts([claim_difference('a & b', '> 3 %', a, b), claim_match('=', '± 1', a, b, .1),
                                                         claim_ratio('x_1', '2 ×', a, b), claim_value('#', '', a, (0,1))])):
        compiles(t.to_latex())
    assert r'92.' in show_arms(df).to_latex() and r'$\pm$' in show_arms(df).to_latex()

# --- which way is better, in a lottery

class Wer(Metric):
    "An error under a name that nobody knows"
    name = 'wer'
    def __init__(self, higher=None): self.higher_is_better = higher
    def reset(self): self.n = 0
    def accumulate(self, learn): self.n += 1
    @property
    def value(self): return .06

class Rising(Wer):
    "Grows with each look: .1 in the dense round, then .2, .3, ..."
    seen = 0
    @property
    def value(self):
        type(self).seen += 1
        return type(self).seen/10

def rising(higher=None): return type('Wer', (Rising,), {})(higher)

def play(metric, *args, **kwargs):
    learn = learner(mlp, metrics=metric)
    learn.fit_lottery(1, *args, seed=0, **kwargs)
    return learn

@pytest.mark.parametrize('kw', [dict(lower=True), dict(higher=False), {}], ids=named)
def test_a_tolerance_goes_the_way_that_was_said(kw):
    for way in (True, False):
        kw = {k:v==way for k,v in kw.items()}
        learn = play(rising(None if kw else not way), 3, tol=.05, monitor='wer', **kw)
        assert len(learn.lottery.rounds)==(2 if way else 4), 'a figure that grows is worse at once where lower is better'
        assert learn.lottery.best(tol=.05).meta['round']==(0 if way else 3)

def test_higher_wherever_lower_is():
    learn = play(rising(), 2)
    for f in (learn.lottery.best, learn.lottery.load_best):
        with pytest.raises(ValueError, match='lower=True or higher=True'): f(monitor='wer')
        with pytest.raises(ValueError, match='contradict each other'): f(monitor='wer', lower=True, higher=True)
    for kw,k in (dict(higher=True),2),(dict(lower=False),2),(dict(higher=False),0):
        assert learn.lottery.best(monitor='wer', **kw).meta['round']==k
    learn.lottery.load_best(monitor='wer', higher=True)
    assert learn.lottery.masks.n_kept==learn.lottery.rounds[2]['kept']
    with pytest.raises(ValueError, match='contradict each other'): learn.fit_lottery(1, lower=False, higher=False)
    with pytest.raises(ValueError, match="is 'wer' better when lower"): play(Wer(), tol=.1)

def test_the_direction_of_one_figure_is_not_that_of_another():
    learn = learner(mlp, metrics=[rising(), accuracy])
    learn.fit_lottery(1, 2, seed=0, tol=9, monitor='wer', lower=True)
    with pytest.raises(ValueError, match='no round is within'): learn.lottery.best(tol=-1, monitor='accuracy')
    for r,a in zip(learn.lottery.rounds, (.9,.5,.3)): r.row['accuracy'] = a
    assert learn.lottery.best(tol=.05, monitor='accuracy').meta['round']==0

def test_what_was_decided_stands_in_the_report(tmp_path, capsys):
    learn = Learner(data(), mlp(), loss_func=CrossEntropyLossFlat(), metrics=Wer(False), cbs=LotteryCallback())
    learn.fit_lottery(1, 1, seed=0, tol=.02, path=tmp_path)
    assert capsys.readouterr().out.count('tol=0.02 goes by wer: lower is better')==1
    for l in (learn, play(Wer(False), 1)):
        assert l.lottery.report().attrs==dict(monitor='wer', better='lower is better')
    assert json.loads((tmp_path/'run.json').read_text())['better']=='lower is better'
    assert play(Wer(), 1).lottery.report().attrs=={}
    assert play(accuracy, 1).lottery.report().attrs==dict(monitor='accuracy', better='higher is better')

def test_a_folder_from_before_goes_on(tmp_path):
    "run.json did not say which way is better, and has no say in it"
    play(accuracy, 1, tol=.9, path=tmp_path)
    run = json.loads((tmp_path/'run.json').read_text())
    assert run.pop('better')=='higher is better' and run['lower'] is None
    (tmp_path/'run.json').write_text(json.dumps(run))
    assert len(play(accuracy, 2, tol=.9, path=tmp_path).lottery.rounds)==3

# --- a prune that can take no more

ends = pytest.mark.filterwarnings('ignore:the lottery ends', 'ignore:no weight is left')

@pytest.mark.parametrize('kw,why', [
    (dict(scope='2:4', amount=.4), '2:4 lets only'), (dict(scope='2:4', amount=.4, rounds=4), '2:4 lets only'),
    (dict(scope=partial(local, floor=20), amount=.4, rounds=9), '`floor=20` leaves only'),
    (dict(scope=partial(global_, floor=20), amount=.4, rounds=9), '`floor=20` leaves only'),
    (dict(amount=.9, rounds=30), 'takes nothing away|leave no weight'),
    (dict(amount=.9, stop=lambda rounds: False), 'takes nothing away|leave no weight'),
    (dict(scope={'*':0.}, rounds=3), 'takes nothing away')], ids=lambda o: o if isinstance(o, str) else ' '.join(o))
@pytest.mark.filterwarnings('ignore:no weight is left')
def test_a_lottery_ends_where_a_prune_can_take_no_more(kw, why, tmp_path):
    with pytest.warns(UserWarning, match=f'the lottery ends after round .*({why})') as w:
        learn = play(accuracy, path=tmp_path, **kw)
    rs = learn.lottery.rounds
    said = [str(o.message) for o in w if 'the lottery ends' in str(o.message)]
    assert len(said)==1 and f"after round {len(rs)-1}, at density {rs[-1]['density']:.4g}" in said[0]
    assert len(rs)<10 and len({r['kept'] for r in rs})==len(rs)
    assert learn.lottery.masks==rs[-1].masks and len(play_again(tmp_path, kw).lottery.rounds)==len(rs)

def play_again(path, kw):
    with pytest.warns(UserWarning, match='the lottery ends'): return play(accuracy, path=path, **kw)

@pytest.mark.parametrize('kw,says', [
    (dict(scope='2:4', amount=.6),
     'the first prune cannot be made: amount=0.6 would remove .*`amount` can be at most 0.5'),
    (dict(scope=n_of_m(1,4), amount=.8, rounds=1), 'the first prune cannot be made'),
    (dict(scope=partial(local, floor=10**6), amount=.1), 'the first prune cannot be made.*lower one of the two'),
    (dict(scope='2:4', amount=.4, to=.4), '`to`=0.4 is further down than this scope goes')], ids=named)
def test_what_counts_tell_is_told_before_the_dense_round(kw, says):
    learn = learner(mlp)
    was = torch.get_rng_state()
    with pytest.raises(ValueError, match=says): learn.fit_lottery(1, **kw)
    assert not learn.lottery.rounds and torch.equal(was, torch.get_rng_state())

@ends
@pytest.mark.parametrize('kw,d', [(dict(scope='2:4', amount=.4, to=.5), .5), (dict(scope='2:4', amount=.8, to=.5), .5),
                                  (dict(scope='2:4', amount=.3, to=.2, rounds=1),
                                   .7), (dict(scope='2:4', amount=.6, rounds=0), 1),
                                  (dict(scope='2:4', amount=0, rounds=2), 1)], ids=named)
def test_what_can_be_met_is_played(kw, d):
    assert abs(play(accuracy, **kw).lottery.masks.density-d)<.01

def test_a_ticket_that_can_lose_no_more_is_refused():
    learn = play(accuracy, 1, scope='2:4', amount=.5)
    with pytest.raises(ValueError, match='the first prune cannot be made'):
        learn.fit_lottery(1, scope='2:4', start=learn.lottery.ticket(1))
