"What the seed decides: the series, starts and what is measured of them, and how a run without accuracies is told"
from dataclasses import replace
from functools import partial
import numpy as np,pandas as pd,pytest,torch
from fastai.torch_core import set_seed
from fastai_lottery.cli import _line
from fastai_lottery.experiments import play_seed,results
from fastai_lottery.presets import check_claims,preset
from fastai_lottery.series import causal_net,series,series_baselines,series_dls
from fastai_lottery.slots import Here
from fastai_lottery.starts import best_of,many_starts,starts
from fastai_lottery.sweeps import play
from fastai_lottery.told import summary

by_name = {p.name:p for p in starts}
short = replace(by_name['seeds-series'], replicates=1,
                settings={**by_name['seeds-series'].settings, 'n_epoch':4},
                measures=dict(starts=partial(many_starts, n=3, cross=2, pairs=1, rungs=(2,), alphas=3)))

def test_a_series_is_its_seeds_and_the_future_comes_last():
    set_seed(1)
    a = series(3)
    set_seed(2)
    assert (a==series(3)).all() and abs(a-series(4)).max()>.1
    tr,va,te = (dl.dataset for dl in series_dls(3, device='cpu').loaders)
    whole = (a-a[:480].mean())/a[:480].std()
    got = torch.cat([tr.y, va.y, te.y])[:,0].numpy()
    assert np.allclose(got, whole[16:], atol=1e-4)

def test_baselines_are_what_they_say():
    dls = series_dls(3, device='cpu')
    x,y = dls.valid.dataset.tensors
    base = series_baselines(dls)
    assert base['persistence']==pytest.approx(float((x[:,0,-1:]-y).square().mean()), rel=1e-5)
    tx,ty = (t.double().numpy() for t in dls.train.dataset.tensors)
    one = lambda x: np.c_[x[:,0], np.ones(len(x))]
    w = np.linalg.lstsq(one(tx), ty, rcond=None)[0]
    assert base['ar']==pytest.approx(float(((one(x.double().numpy())@w-y.numpy())**2).mean()), rel=1e-5)

def test_starts_of_a_series_and_how_they_are_told(tmp_path, capsys):
    list(play(short, tmp_path, executor=Here()))
    ms = pd.read_csv(tmp_path/'seed_00'/'measures.csv')
    own,crossed = ms[ms.what=='start'],ms[ms.what=='crossed']
    assert len(own)==3 and list(zip(crossed.init, crossed.order))==[(0,1),(1,0)]
    assert own.valid.nunique()==3 and crossed.valid.isin(own.valid).sum()==0
    assert (own.generalises==(own.valid<own[['persistence','ar']].min(axis=1))).all()
    assert {'train_2','valid_2','pruned_2'}<={*own} and (own.pruned_2!=own.valid_2).all()
    assert set(ms.which.dropna())=={'good','bad','both'}
    df = results(tmp_path)
    assert 'nan' in _line(df.iloc[0])
    summary(tmp_path, df)
    said = capsys.readouterr().out
    assert 'no accuracies' in said and 'picture  none' in said and 'persistence' in said

def test_the_same_start_in_the_same_order_ends_alike(tmp_path):
    "A start is trained as if it were alone: more of them, or a cross, change none"
    more = replace(short, measures=dict(starts=partial(many_starts, n=2, cross=0, pairs=1, rungs=(), alphas=2)))
    play_seed(short, 0, tmp_path/'a')
    play_seed(more, 0, tmp_path/'b')
    a,b = (pd.read_csv(tmp_path/d/'measures.csv') for d in 'ab')
    assert list(a.valid[:2])==list(b.valid[:2])

def test_best_of_counts_alike(tmp_path):
    p = by_name['seeds-digits']
    p = replace(p, settings={**p.settings, 'n_epoch':1},
                measures=dict(best_of=partial(best_of, n=3, accuracy=.1, **{'net':p.model})))
    play_seed(p, 0, tmp_path)
    ms = pd.read_csv(tmp_path/'measures.csv').set_index('what')
    own = ms.loc['start']
    assert len(own)==3 and (own['first']==1).all()
    assert ms.loc['best','accuracy']==own.accuracy.max()
    assert ms.loc['best','iterations']==ms.loc['long','iterations']==ms.loc['ensemble','iterations']==own.iterations.sum()

def test_claims_are_of_one_comparison_each():
    ms = pd.DataFrame([dict(arm='starts', round=0, seed=s, what='start', generalises=g) for s in range(20) for g in (0,0,1)])
    ms['generalises'] += 1e-3*ms.seed
    for n,verdict in ((20,'reproduced'), (9,'reproduced, provisional')):
        t = check_claims('seeds-series', None, ms[ms.seed<n])
        assert len(t)==1 and t.verdict.iloc[0]==verdict
    assert preset('seeds-series-16').measures['starts'].keywords['n']==16
