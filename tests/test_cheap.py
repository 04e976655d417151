"Cheap tickets: what each arm costs, the choice and the claim, and a confirmation from its lottery to its last measure"
from dataclasses import replace
import json,math
import numpy as np,pandas as pd,pytest
from scipy import stats
from fastai_lottery.cheap import *
from fastai_lottery.cheap import _checks,_confirm,chosen,choose,claim_id,claim_text,margin,recipes
from fastai_lottery.claims import *
from fastai_lottery.experiments import *
from fastai_lottery.presets import check_claims,preset
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.filterwarnings('ignore')

# --- made-up results: trainings of 800 iterations

def shown(arm, seed, k, acc=.98, **more):
    return dict(arm=arm, seed=seed, round=k, density=.8**k, iterations=800, accuracy=acc, test_accuracy=acc, **more)
def table(n=4, lead=0., noise=0., seed0=0):
    rng = np.random.default_rng(0)
    rows = []
    for s in range(seed0, seed0+n):
        base = .98+.001*rng.normal()
        rows += [shown('dense' if not k else 'ticket', s, k, base) for k in range(15)]
        for k in (9,14):
            rows += [shown('shuffle', s, k, base-.01), shown('one_shot', s, k, base-.002)]
            rows += [shown(chosen, s, k, base+lead+noise*rng.normal(), spent=2000. if k==9 else 2500., whole=True)]
    return pd.DataFrame(rows)

def test_costs_by_hand():
    t = with_costs(table()).set_index(['arm','seed','round'])
    want = dict(ticket=10*800, shuffle=800, one_shot=1600, **{chosen:2000})
    for a,n in want.items(): assert t.spent[a,2,9]==n and t.cost[a,2,9]==n/8000
    assert t.spent['dense',0,0]==800 and t.cost[chosen,0,14]==2500/(15*800)

def test_a_control_of_a_recipe_costs_what_the_recipe_does():
    "It trains the recipe's mask, which had to be found first; IMP's mask from new weights costs what IMP does"
    more = [shown(a, s, k) for s in range(4) for k in (9,14) for a in (f'{chosen}_reinit','reinit')]
    t = with_costs(pd.concat([table(), pd.DataFrame(more)], ignore_index=True)).set_index(['arm','seed','round'])
    for k in (9,14):
        assert t.cost[f'{chosen}_reinit',1,k]==t.cost[chosen,1,k]<.26 and t.cost['reinit',1,k]==1

def test_the_choice_goes_by_validation_and_by_cost():
    df = table()
    more = [(s,k,*o) for s in range(4) for k in (9,14) for o in (('going_on_mean',.985,2000.),('going_on',.99,2400.))]
    more = pd.DataFrame([shown(a, s, k, acc, spent=its) for s,k,a,acc,its in more])
    better = pd.concat([df, more], ignore_index=True)
    assert choose(df)==chosen and choose(better)=='going_on_mean', 'going_on costs 30 % at the first level'
    better.loc[better.arm=='going_on_mean','test_accuracy'] = .5
    assert choose(better)=='going_on_mean', 'the test figures are not looked at'
    better.loc[better.arm=='going_on','spent'] = 2000.
    assert choose(better)=='going_on', 'where it costs a quarter'

leads = [(0.,'reproduced'), (-.001,'reproduced'), (-.0015,'not shown'), (-.004,'outside'), (.01,'reproduced')]
@pytest.mark.parametrize('lead,want', leads)
def test_the_claim(lead, want):
    got = check_claims('cheap-mnist-confirm', table(20, lead, .0005, 100))
    assert got.verdict.tolist()==[want]*2 and got.n.tolist()==[20]*2

def test_the_test_is_the_one_sided_t():
    rng = np.random.default_rng(1)
    a,b = rng.normal(.98, .002, 20),rng.normal(.98, .002, 20)
    c = claim_not_worse('', '', a, b, margin)
    d = 100*(a-b)
    t = (d.mean()+margin)/(d.std(ddof=1)/20**.5)
    assert math.isclose(c.p, stats.t.sf(t, 19)) and math.isclose(c.mean, d.mean()) and math.isclose(c.p_opposite, 1-c.p)

def test_what_is_claimed_stands_in_the_repository():
    "Another text is another claim: a digest that was played stays what it is"
    words = repr(chosen),f'{margin} percentage points','25 %','13.5 %','5 %','3,664','11,908','100 to 119'
    assert all(o in claim_text for o in words)
    assert preset('cheap-mnist-confirm').first==100 and preset('cheap-mnist-confirm').replicates==20
    assert claim_id=='x6c89d490c330347d'

# --- played

def tiny(**kw):
    p = preset('cheap-tiny')
    return replace(p, settings={**p.settings, 'n_epoch':1}, **kw)

def test_a_confirmation(tmp_path):
    p = tiny(controls=_confirm, measures=_checks, first=100)
    df = play_seed(p, 0, tmp_path/'seed_00')
    at = df[df['round']==2].set_index('arm')
    assert set(at.index)=={'ticket','shuffle','reinit','one_shot',chosen,f'{chosen}_reinit'} and at.kept.nunique()==1
    assert json.loads((tmp_path/'seed_00/run.json').read_text())['seed']==100
    m = measured(tmp_path).set_index('arm')
    assert m.loc['declared','claim']==claim_id and m.loc['declared','recipe']==chosen
    assert 0<m.loc['whose_mask','chance']<m.loc['whose_mask','overlap']<1
    assert set(m.loc[['instability']]['mask'])=={'ticket',chosen}
    def written(): return {f:f.stat().st_mtime_ns for f in tmp_path.rglob('*.safetensors')}
    was = written()
    play_seed(p, 0, tmp_path/'seed_00')
    assert len(was)>6 and written()==was, 'nothing is played twice'

def test_seeds_begin_where_the_preset_says():
    a,b = preset('cheap-digits').learner(103),replace(preset('cheap-digits'), first=100).learner(3)
    assert all((v==w).all() for v,w in zip(a.model.parameters(), b.model.parameters()))
    assert (a.dls.train.one_batch()[0]==b.dls.train.one_batch()[0]).all()

def test_all_arms_keep_as_many_in_each_layer(tmp_path):
    "The gradual search but for a rounding"
    def sizes(masks): return {n:int(m.sum()) for n,m in masks.items()}
    own,layers = {},{}
    def noted(a):
        def control(run, k):
            own.update(sizes(run.ticket(k).masks))
            r = recipes[a](run, k)
            layers[a] = sizes(r.masks)
            return r
        return control
    p = tiny(controls={a:noted(a) for a in recipes}, levels=(4,))
    play_seed(replace(p, settings={**p.settings, 'rounds':4}), 0, tmp_path)
    assert set(layers)==set(recipes)
    for a,d in layers.items():
        off = 3 if a=='gradual' else 0
        assert sum(d.values())==sum(own.values()) and all(abs(v-own[n])<=off for n,v in d.items()), a
