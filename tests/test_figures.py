"Figures by name: which way is better, what is shown in percent, what n counts, and tables for a paper"
import io,math,re
from functools import partial
import numpy as np,pandas as pd,pytest
from nets import *
from fastai.callback.all import *
from fastai.learner import AvgMetric,Metric
from fastai.metrics import *
from fastai_lottery.arms import *
from fastai_lottery.claims import *
from fastai_lottery.claims import Figures
from fastai_lottery.plots import *
from fastai_lottery.statistics import *
from fastai_lottery.statistics import Shown,is_fraction,is_lower,lower_of,own_lower,scale_of
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

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
    def compute(self): return 0.

@pytest.mark.parametrize('m,lower', [
    (told(False), True), (told(True), False), (partial(told(False)), True), (AvgMetric(told(False)), True),
    (AvgMetric(partial(partial(told(True)))), False), (AccumMetric(told(False)), True), (Own(), True), (Holds(Torchs()), False),
    (ValueMetric(Torchs().compute, 'top'), False), (wer, None), (AvgMetric(wer), None), (accuracy, None), (F1Score(), None), (None, None),
    (told(None), None), (told('yes'), None)], ids=str)
def test_a_metric_may_say_it_itself(m, lower): assert own_lower(m) is lower

# --- percent

@pytest.mark.parametrize('name,k', dict(accuracy=100, es_test_accuracy=100, test_f1_score_2=100, error_rate=100, valid_loss=1,
                                        perplexity=1, test_mae=1, es_iteration=1, wer=1).items())
def test_percent_is_for_fractions(name, k): assert scale_of(name)==k and scale_of(name, 7)==7 and is_fraction(name)==(k==100)

# --- n is seeds

def seeds(n=3, rounds=(0,1), **more):
    rows = [dict(seed=s, round=r, accuracy=.9+s/100-r/50, loss=1.5-r) for s in range(n) for r in rounds]
    return pd.DataFrame(rows).assign(**more)

def test_rows_of_one_seed_are_no_replicates():
    df = seeds(net='lenet')
    with pytest.raises(ValueError, match=r"2 rows are of seed 0 where net='lenet'.*They differ in 'round': group by that too"):
        summarise(df, 'net', 'accuracy')
    assert summarise(df, ['net','round'], 'accuracy').n.tolist()==[3,3]
    within = df.groupby(['net','seed'], as_index=False).mean(numeric_only=True)
    assert summarise(within, 'net', 'accuracy').n.tolist()==[3]

def test_rows_of_one_seed_are_told_apart_by_what_tells_them_apart():
    both = pd.concat([seeds(arm='ticket'), seeds(arm='reinit')])
    with pytest.raises(ValueError, match="4 rows are of seed 0 .*differ in 'round', 'arm': group"): summarise(both.assign(x=1), 'x', 'loss')
    with pytest.raises(ValueError, match="2 rows are of seed 0 where round=0.*differ in 'arm': group"): summarise(both, 'round', 'loss')
    with pytest.raises(ValueError, match='differ in nothing: the rows are there twice'):
        summarise(pd.concat([seeds(), seeds()]), ['round'], 'accuracy')

def test_a_seed_by_itself_and_another_name():
    with pytest.raises(ValueError, match="2 rows are of seed 0, and"): summarise(seeds(), 'seed', 'accuracy')
    df = seeds().rename(columns=dict(seed='replicate'))
    assert summarise(df, 'round', 'accuracy').n.tolist()==[3,3]    # no seed: each row is a replicate
    with pytest.raises(ValueError, match='2 rows are of replicate 0'): summarise(df.assign(x=1), 'x', 'accuracy', seed='replicate')
    with pytest.raises(ValueError, match=r"no columns \['rep'\]"): summarise(df, 'round', 'accuracy', seed='rep')

# --- tables for a paper

def compiles(tex):
    "Nothing in a table of text that LaTeX stops at: specials escaped, no sign that it lacks, braces, dollars and environments in pairs"
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
