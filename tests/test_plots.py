"Pictures of 40_plots and 41_pictures: what is drawn is what was given, on the axes given, and nothing is trained or touched"
import math
import pytest
import matplotlib.pyplot as plt
import numpy as np,pandas as pd
from nets import *
from fastai_lottery.analysis import *
from fastai_lottery.sizes import layer_table
from fastai_lottery.statistics import interval
from fastai_lottery.plots import *
from fastai_lottery.plots import density_ticks,words_of
from fastai_lottery.pictures import *

@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')

@pytest.fixture(scope='module')
def played():
    "A Learner after three rounds with curves, of a net with 8×8 inputs"
    l = learner(lambda: nn.Sequential(nn.Linear(64,12), nn.ReLU(), nn.Linear(12,4)), dls=data((64,)))
    l.fit_lottery(2, rounds=2, amount=.5, seed=0, eval_every=3)
    return l

def rand(shapes, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Masks({n:torch.rand(s, generator=g)<d for n,s in shapes.items()})
fc = dict(a=(6,64), b=(3,6), c=(2,3))

def table(*arms, seeds=3, col='es_test_accuracy', rounds=(0,1,2,4)):
    rng = np.random.default_rng(0)
    def row(i, a, s, k):
        acc = .9-.01*k-.001*i+.01*rng.normal()
        return {'arm':a if k else 'dense', 'seed':s, 'round':k, 'density':.5**k, col:acc, 'es_iteration':100*k+s}
    all_ = [(i,a,s,k) for i,a in enumerate(arms) for s in range(seeds) for k in rounds if k or a=='ticket']
    return pd.DataFrame([row(*o) for o in all_])
def texts(ls): return [o.get_text() for o in ls]
def look(o): return o.get_color(),o.get_marker(),o.get_linestyle(),repr(o._unscaled_dash_pattern)
def looks(ax): return {o.get_label():look(o) for o in ax.lines if not o.get_label().startswith('_')}
def says(msg, f, *args, e=ValueError, **kwargs):
    with pytest.raises(e, match=msg): f(*args, **kwargs)
def left(m): return f'{100*m.float().mean():.3g} % left'

# ---- one style, given axes, nothing touched

def all_plots(l, ax):
    "Each picture, drawn on `ax`"
    rs = l.lottery.rounds
    t = rs[-1].ticket
    m3 = stability(t, t.weights, l.model)
    path = pd.DataFrame(dict(alpha=[0,.5,1], loss=[1.,3.,2.], error=[.1,.6,.3]))
    return dict(
        arms=lambda: plot_arms(table('ticket','one_shot'), 'es_test_accuracy', ax),
        curves=lambda: plot_curves(rs, ax=ax),
        density=lambda: plot_density(rs, ax),
        mask=lambda: plot_mask(t, ax=ax),
        weights=lambda: plot_weights(t, l.model, ax=ax),
        moments=lambda: plot_moments({'a':t.weights['2.weight'], 'b':l.model[2].weight}, ax=ax),
        report=lambda: l.lottery.plot(ax=ax),
        overlap=lambda: plot_overlap(overlap_table(rs), ax=ax),
        path=lambda: plot_path(path, ax=ax),
        layers=lambda: plot_layers(m3, 'angle', ax=ax))
names = 'arms curves density mask weights moments report overlap path layers'.split()

def seen(l):
    rs = l.lottery.rounds
    rng = torch.get_rng_state().tolist(),np.random.get_state()[1].tolist(),random.getstate(),l.dls.train.rng.getstate()
    kept = len(rs),[r.masks.hash() for r in rs],[r.curve.to_csv() for r in rs]
    return hash_of(l.model.state_dict()),l.model.training,rng,kept,len(l.cbs)
def hash_of(s): return hashlib.sha256(b''.join(v.numpy().tobytes() for v in s.values())).hexdigest()

@pytest.mark.parametrize('name', names)
def test_draws_on_the_axes_given_and_touches_nothing(name, played, monkeypatch):
    ax = plt.subplots()[1]
    f = all_plots(played, ax)[name]
    for o in ('fit','_do_fit','one_batch','validate','evaluate'):
        monkeypatch.setattr(Learner, o, lambda *a,**k: pytest.fail('a picture trains nothing'))
    old,figs = seen(played),plt.get_fignums()
    assert f() is ax and plt.get_fignums()==figs and ax.has_data()
    assert seen(played)==old

@pytest.mark.parametrize('name', names)
def test_makes_axes_of_its_own(name, played):
    ax = all_plots(played, None)[name]()
    assert len(plt.get_fignums())==1 and ax.figure.get_layout_engine() is not None
    ax.figure.canvas.draw()

@pytest.mark.parametrize('name', [o for o in names if o not in ('mask','overlap','moments')])
def test_one_style(name, played):
    ax = all_plots(played, None)[name]()
    assert not ax.spines['top'].get_visible() and not ax.spines['right'].get_visible()
    assert ax.xaxis.get_gridlines()[0].get_visible()
    assert ax.get_xlabel() and ax.get_ylabel() and ax.figure.get_facecolor()[:3]==(1,1,1)

def test_lines_differ_by_colour_marker_and_dashes():
    many = [f'arm_{i}' for i in range(30)]
    ls = looks(plot_arms(table('ticket','reinit','random',*many, rounds=(0,1,2)), 'es_test_accuracy'))
    assert len(ls)==34 and len(set(ls.values()))==34
    usual = {v[0] for k,v in ls.items() if k in ('winning ticket','random re-initialisation')}
    assert len(usual)==2 and not usual & {v[0] for k,v in ls.items() if k.startswith('arm ')}, "the ticket's blue is its own"
    few = [v for k,v in ls.items() if k!='dense'][:7]
    for i in range(2): assert len({o[i] for o in few})==7
    assert len({o[2:] for o in few})==7

# ---- weights remaining

def test_arms_draw_means_and_bands():
    df = table('ticket','reinit','random','one_shot')
    ax = plot_arms(df, 'es_test_accuracy')
    named = dict(ticket='winning ticket', reinit='random re-initialisation', random='random mask', one_shot='pruned at once')
    for a,name in named.items():
        line, = [o for o in ax.lines if o.get_label()==name]
        d = df[df.arm.isin(['dense',a] if a=='ticket' else [a])]
        g = d.groupby('round')
        assert line.get_xdata().tolist()==g.density.mean().tolist()
        assert line.get_ydata()==pytest.approx(100*g.es_test_accuracy.mean().to_numpy())
    band = ax.collections[0].get_paths()[0].vertices
    i = interval(100*df[df['round']==4].query("arm=='ticket'").es_test_accuracy)
    at = band[np.isclose(band[:,0], .5**4),1]
    assert at.min()==pytest.approx(i.lo) and at.max()==pytest.approx(i.hi)
    dense, = [o for o in ax.lines if o.get_label()=='dense']
    assert dense.get_ydata()[0]==pytest.approx(100*df[df.arm=='dense'].es_test_accuracy.mean())
    assert dense.get_marker()=='None'
    assert texts(ax.get_legend().texts)==['winning ticket','random re-initialisation','random mask','dense','pruned at once']

def test_arms_axis_is_logarithmic_from_dense_to_sparse():
    ax = plot_arms(table('ticket'), 'es_test_accuracy')
    assert ax.get_xscale()=='log' and ax.xaxis_inverted()
    assert ax.get_xlabel()=='weights remaining (%)' and ax.get_ylabel()=='test accuracy at early stop (%)'
    assert texts(ax.get_xticklabels())==['100','50','20','10','6.25'] and ax.get_xticks().tolist()==[1,.5,.2,.1,.5**4]
    plot_arms(table('reinit', rounds=(1,9)), 'es_test_accuracy', ax)
    both = 'a second picture on the same axes keeps their direction and has room for both'
    assert ax.xaxis_inverted() and ax.get_xticks()[0]==1 and ax.get_xticks()[-1]<=.005, both

def test_the_usual_arms_always_look_the_same():
    some = ('ticket','reinit','random'),('zzz','random','other','ticket')
    one,two = [looks(plot_arms(table(*a), 'es_test_accuracy')) for a in some]
    for n in ('winning ticket','random mask'): assert one[n]==two[n]
    ax = plot_arms(table('ticket','zzz'), 'es_test_accuracy', legend=False)
    assert ax.get_legend() is None and arms.keys()=={'ticket','reinit','shuffle','random','dense'}

def test_the_last_density_is_named():
    for last in (.0115,.05,.051,.0625):
        df = table('ticket', rounds=(0,1)).assign(density=lambda d: np.where(d['round']==0, 1., last))
        names = texts(plot_arms(df, 'es_test_accuracy').get_xticklabels())
        assert names[-1]==f'{100*last:.3g}' and len(set(names))==len(names)>2

def test_lines_that_lie_on_each_other_are_both_seen():
    df = table('ticket','reinit','one_shot')
    same = df.copy()
    for a in ('reinit','one_shot'):
        for k in set(df[df.arm==a]['round']):
            own = df[(df.arm=='ticket')&(df['round']==k)].es_test_accuracy.to_numpy()
            same.loc[(same.arm==a)&(same['round']==k), 'es_test_accuracy'] = own
    def wide(df): return {o.get_label():(o.get_linewidth(),o.get_zorder()) for o in plot_arms(df, 'es_test_accuracy').lines}
    apart,on = wide(df),wide(same)
    names = 'winning ticket','random re-initialisation','pruned at once'
    assert len({apart[n] for n in names})==1 and on[names[0]]==apart[names[0]]
    (a,x),(b,y),(c,z) = [on[n] for n in names]
    assert a<b<c and x>y>z, 'each is wider than those that lie on it'

def places(ax):
    "Name, figures and place in pixels of the points which have an interval and no line"
    ax.figure.canvas.draw()
    def pixel(o): return o.get_transform().transform(o.get_xydata())[0,0]
    return {o.get_label():(o[0].get_xydata()[0].tolist(),pixel(o[0])) for o in ax.containers}

def test_an_arm_with_one_point_stands_beside_others():
    df = table('ticket','reinit','a','b','c')
    df = df[~df.arm.isin(['a','b','c'])|(df['round']==2)]
    ax = plot_arms(df, 'es_test_accuracy')
    ps = places(ax)
    assert ps.keys()=={*'abc'} and not ps.keys() & looks(ax).keys(), 'points without a line'
    for a,(xy,_) in ps.items(): assert xy==pytest.approx([.25, 100*df[df.arm==a].es_test_accuracy.mean()]), 'data are as they are'
    own, = [o.get_transform().transform((.25,1))[0] for o in ax.lines if o.get_label()=='winning ticket']
    at = sorted([own,*[x for _,x in ps.values()]])
    assert min(np.diff(at))>4, 'and none stands on another or on the ticket'
    i = interval(100*df[df.arm=='a'].es_test_accuracy)
    bar, = [o[2][0] for o in ax.containers if o.get_label()=='a']
    assert bar.get_segments()[0][:,1]==pytest.approx([i.lo,i.hi])

def test_arms_of_the_same_cost_stand_side_by_side():
    costs = dict(ticket=1, early_bird=1, gradual=.25, short=.251, one_shot=.4)
    df = pd.DataFrame([dict(arm=a, seed=s, round=3, density=.5, cost=c, test_accuracy=.9+.01*s) for a,c in costs.items() for s in range(3)])
    ps = places(plot_cost(df, 3))
    assert {n:xy[0] for n,(xy,_) in ps.items()}==pytest.approx({
        'winning ticket':100, 'early bird':100, 'pruned gradually':25, 'short trainings':25.1, 'pruned at once':40})
    assert min(np.diff(sorted(x for _,x in ps.values())))>4

@pytest.mark.parametrize('mask,label', [
    ('shuffle_mask','mask shuffled in each layer'), ('random_mask','random mask over the net'), (None,'random mask')])
def test_a_mask_by_chance_is_called_what_it_is(mask, label):
    "An old table calls both 'random'; its column `mask` tells them apart"
    df = table('ticket','random')
    if mask: df['mask'] = np.where(df.arm=='random', mask, 'ticket')
    assert label in texts(plot_arms(df, 'es_test_accuracy').get_legend().texts)

def test_arms_without_a_figure_are_left_out_and_gaps_are_none():
    df = table('ticket','reinit','random')
    df.loc[df.arm=='random','es_test_accuracy'] = np.nan
    df.loc[(df.arm=='reinit')&(df.seed==0),'es_test_accuracy'] = np.nan
    ax = plot_arms(df, 'es_test_accuracy')
    assert texts(ax.get_legend().texts)==['winning ticket','random re-initialisation','dense']
    line, = [o for o in ax.lines if o.get_label()=='random re-initialisation']
    want = df[(df.arm=='reinit')&(df.seed>0)].groupby('round').es_test_accuracy.mean()
    assert line.get_ydata()==pytest.approx(100*want.to_numpy())

def test_units():
    words = dict(accuracy='accuracy (%)', es_test_accuracy='test accuracy at early stop (%)',
                 valid_loss='validation loss',
        es_iteration='early-stop iteration', train_loss='training loss', error_rate='error rate (%)', perplexity='perplexity',
        es_valid_loss='validation loss at early stop', es_f1_score='f1 score at early stop (%)', accuracy_2='accuracy 2 (%)',
        test_error='test error (%)', r2_score='r2 score', mean_absolute_error='mean absolute error')
    assert {o:words_of(o) for o in words}==words
    df = table('ticket')
    raw = df.query("arm=='dense'").es_test_accuracy.mean()
    s = 'test accuracy at early stop'
    for scale,k,label in ((None,100,s+' (%)'), (1,1,s), (10,10,s)):
        ax = plot_arms(df, 'es_test_accuracy', scale=scale)
        assert ax.lines[0].get_ydata()[0]==pytest.approx(k*raw) and ax.get_ylabel()==label
    assert plot_arms(df, 'es_iteration').lines[0].get_ydata().tolist()==[1,101,201,401]
    assert plot_arms(df, 'es_iteration', label='mine').get_ylabel()=='mine'

def test_ticks():
    assert density_ticks([1,.03])==[1,.5,.2,.1,.05]
    assert density_ticks([1,.9,.81])==[1,.9,.81] and density_ticks([1])==[1]
    assert density_ticks([1,1e-4])==[1,.1,.01,.001,1e-4] and len(density_ticks([1,.002]))==9
    assert len(density_ticks(.98**np.arange(20)))<=6 and density_ticks([1,.45], own=False)==pytest.approx([.6,.8,1])

def test_arms_errors():
    df = table('ticket')
    has = 'arm, seed, round, density, es_test_accuracy, es_iteration'
    says(f"no column 'accuracy'; it has {has}", plot_arms, df, 'accuracy')
    says("no column 'arm'", plot_arms, df.drop(columns='arm'), 'es_iteration')
    says("no training in the table has a figure of 'x'$", plot_arms, df.assign(x=np.nan), 'x')
    late = "a figure of 'es_loss': figures at the early-stop iteration need a validation set, and `eval_every`"
    says(late, plot_arms, df.assign(es_loss=np.nan), 'es_loss')
    assert not plt.get_fignums()
    says("no column 'es_test_accuracy'", plot_lottery, df.drop(columns='es_test_accuracy'))
    assert not plt.get_fignums(), 'no half figure is left behind'

@pytest.mark.parametrize('more', [0,6])
def test_lottery_is_both_pictures_and_one_legend(more):
    df = table('ticket','reinit',*[f'arm_{i}' for i in range(more)])
    axs = plot_lottery(df, 'mine')
    fig = axs[0].figure
    assert list(axs)==fig.axes
    assert [o.get_ylabel() for o in fig.axes]==['test accuracy at early stop (%)','early-stop iteration']
    assert fig.get_suptitle()=='mine: mean and 95 % interval over 3 seeds' and fig.axes[1].get_legend() is None
    assert len((fig.legends[0] if more else fig.axes[0].get_legend()).texts)==3+more and bool(fig.legends)==bool(more)
    assert plot_lottery(table('ticket', seeds=1))[0].figure.get_suptitle()=='mean and 95 % interval over 1 seed'

def test_lottery_on_given_axes():
    df = table('ticket','reinit')
    _,mine = plt.subplots(1, 3)
    got = plot_lottery(df, 'mine', ax=mine[:2])
    assert got[0] is mine[0] and got[1] is mine[1] and mine[0].lines and mine[1].lines and not mine[2].lines
    assert mine[0].get_title().startswith('mine: mean') and not mine[0].figure.legends
    n = len(plt.get_fignums())
    says("`ax` should be 2 axes for as many pictures; got 3", plot_lottery, df, ax=mine)
    assert len(plt.get_fignums())==n

# ---- one run

def test_plot_draws_the_report(played):
    df = played.lottery.report(full=True)
    ax = played.lottery.plot()
    line,dense = ax.lines
    assert line.get_ydata()==pytest.approx(100*df.accuracy.to_numpy())
    assert line.get_xdata().tolist()==df.density.tolist()
    assert dense.get_ydata()[0]==pytest.approx(100*df.accuracy[0])
    assert ax.get_ylabel()=='accuracy (%)' and ax.get_xscale()=='log' and ax.xaxis_inverted()
    assert played.lottery.plot('es_iteration').lines[0].get_ydata().tolist()==df.es_iteration.tolist()
    assert played.lottery.plot('valid_loss').lines[0].get_ydata()==pytest.approx(df.valid_loss.to_numpy())
    says("`monitor` should be one of valid_loss, accuracy; got 'f1'", played.lottery.plot, 'f1')

def test_curves_draw_the_curves(played):
    rs = played.lottery.rounds
    ax = plot_curves(rs)
    assert len(ax.lines)==3 and texts(ax.get_legend().texts)==['round 0: 100 %','round 1: 50 %','round 2: 25 %']
    assert (ax.get_xlabel(),ax.get_ylabel())==('iteration','validation loss')
    for o,r in zip(ax.lines, rs):
        assert o.get_xdata().tolist()==r.curve.iteration.tolist()
        assert o.get_ydata().tolist()==r.curve.valid_loss.tolist()
        assert r.curve.iteration[o.get_markevery()[0]]==r['es_iteration'] and len(o.get_markevery())==1
    ax = plot_curves(rs, 'accuracy')
    assert ax.lines[2].get_ydata()==pytest.approx(100*rs[2].curve.accuracy.to_numpy())
    assert rs[2].curve.iteration[ax.lines[2].get_markevery()[0]]==rs[2]['es_iteration'], 'the early stop is that of the loss'

def test_curves_of_tables_and_names():
    d = pd.DataFrame(dict(iteration=[10,20,30], valid_loss=[3.,1.,2.], accuracy=[.1,.2,.3])).set_axis([7,3,5])
    ax = plot_curves(d)
    assert len(ax.lines)==1 and ax.get_legend() is None and ax.lines[0].get_markevery()==[1]
    ax = plot_curves({'x':d, 'y':d.drop(columns='valid_loss')}, 'accuracy')
    assert texts(ax.get_legend().texts)==['x','y'] and ax.lines[1].get_markevery()==[]
    assert plot_curves([d,d], legend=False).get_legend() is None

def test_rounds_go_from_dark_to_light():
    d = pd.DataFrame(dict(iteration=[10,20], valid_loss=[3.,1.]))
    lum = [plt.matplotlib.colors.to_rgb(o.get_color())@np.array([.299,.587,.114]) for o in plot_curves([d]*9).lines]
    assert lum==sorted(lum) and lum[0]==0 and lum[-1]<.6, 'rounds go from dark to light, and the last can still be seen on white'

def test_curves_errors(played):
    plain = learner()
    plain.fit_lottery(1, rounds=1, seed=0)
    rs,first = plain.lottery.rounds,"'round 0: 100 %'"
    says(rf"{first} has no curve: fit_lottery\(..., eval_every=100\)", plot_curves, rs)
    says("'mine' has no curve", plot_curves, {'mine':rs[1]})
    says(f"curve of {first} has no column 'f1'; it has iteration, valid_loss, accuracy", plot_curves,
         played.lottery.rounds, 'f1')
    says("there is no round to draw", plot_curves, [])
    says('a curve as a DataFrame; got int', plot_curves, [3], e=TypeError)
    assert not plt.get_fignums()

# ---- layers

def test_density_draws_each_layer(played):
    rs = played.lottery.rounds
    ax = plot_density(rs)
    for o,r in zip(ax.lines, rs): assert o.get_ydata()==pytest.approx(100*layer_table(r.masks).density[:-1].to_numpy())
    assert texts(ax.get_xticklabels())==['0','2'] and ax.get_yscale()=='log'
    assert texts(ax.get_legend().texts)==['round 0: 100 %','round 1: 50 %','round 2: 25 %']
    for o in (rs[-1],rs[-1].ticket,rs[-1].masks,played.lottery):
        line, = (one := plot_density(o)).lines
        assert line.get_ydata().tolist()==ax.lines[-1].get_ydata().tolist() and one.get_legend() is None

def test_density_shows_layers_without_a_weight():
    m = rand(fc, .5)
    dead = Masks({n:torch.zeros_like(o) if n=='b' else o for n,o in m.items()})
    ax = plot_density({'x':m, 'y':dead})
    *alive,cross = ax.lines
    assert np.isnan(alive[1].get_ydata()).tolist()==[False,True,False]
    assert cross.get_marker()=='x' and cross.get_xdata().tolist()==[1]
    lowest = min(np.nanmin(o.get_ydata()) for o in alive)
    assert texts(ax.get_yticklabels())[-1]=='0' and ax.get_yticks()[-1]==cross.get_ydata()[0]<lowest
    assert '0' not in texts(plot_density(m).get_yticklabels())
    plot_density(Masks({'a':torch.zeros(3,3).bool()})).figure.canvas.draw()
    says('masks of different weights', plot_density, [m, rand(dict(a=(2,2)), .5)])
    says('expected `Masks`.*got int', plot_density, [3], e=TypeError)

# ---- masks

def test_mask_of_a_picture():
    m = rand({'first':(300,784), 'c':(5,3*32*32), 'last':(10,300)}, .2)
    ax = plot_mask(m)
    assert (ax.images[0].get_array()==m['first'].sum(0).reshape(28,28).numpy()).all()
    assert ax.get_title()==f"first: {left(m['first'])}" and not ax.get_xticks().size
    assert ax.images[0].colorbar.ax.get_ylabel()=='weights left at the pixel' and ax.images[0].get_clim()[0]==0
    a = plot_mask(m, 'c', shape=(3,32,32)).images[0].get_array()
    assert a.shape==(32,32) and (a==m['c'].sum(0).reshape(3,32,32).sum(0).numpy()).all()

def shape_of(*args, **kwargs): return plot_mask(*args, **kwargs).images[0].get_array().shape

def test_what_is_taken_for_a_picture():
    m = rand({'first':(300,784), 'c':(5,3*32*32), 'last':(10,300)}, .2)
    assert shape_of(Masks({'c':m['c']}))==(32,32), 'guessed: three colours'
    assert shape_of(m, shape=(14,56))==(14,56)
    assert shape_of(rand({'e':(7,400)}, .2))==(7,100), '400 inputs are no picture, although 20×20'
    two = rand({'first':(64,64), 'second':(9,64)}, .5)
    assert [shape_of(two, n) for n in two]==[(8,8),
                                             (9,64)], 'only the first layer reads pictures, where nothing else is said'

def test_mask_of_a_matrix_and_a_vector():
    m = rand({'m':(10,30), 'v':(12,), 'big':(301,130)}, .3)
    assert (plot_mask(m).images[0].get_array()==m['m'].numpy()).all()
    assert (plot_mask(m,'v').images[0].get_array()==m['v'].numpy()[None]).all()
    a = plot_mask(m, 'big').images[0].get_array()
    w = 100*m['big'].float().numpy()
    assert a.shape==(101,65) and a[3,4]==pytest.approx(w[9:12,8:10].mean()), 'blocks of 3×2'
    assert a[-1,-1]==pytest.approx(w[300:,128:].mean()), 'the last ones smaller'
    assert (plot_mask(Masks.ones(m), 'big').images[0].get_array()==100).all()

def test_mask_of_kernels():
    m = rand({'c':(6,2,3,3)}, .5)
    a = plot_mask(m).images[0].get_array()
    c = m['c'].reshape(12,3,3).numpy()
    cols = (a.shape[1]-1)//4
    assert cols%2==0, 'whole filters in a row'
    for j,k in enumerate(c):
        r,q = divmod(j, cols)
        assert (a[4*r+1:4*r+4, 4*q+1:4*q+4]==k).all()
    assert a.mask[0].all() and a.mask[:,
                                      0].all() and a.mask[4].all() and (~a.mask).sum()==c.size, 'gaps are neither kept nor pruned'

def test_mask_of_kernels_of_other_sizes():
    m = rand({'one':(5,1,4), 'many':(20,50,3,3), 'pointwise':(8,4,1,1), 'vol':(2,1,2,3,3)}, .5)
    for n,k in (('one',20), ('vol',36)): assert (~plot_mask(m, n).images[0].get_array().mask).sum()==k
    for n in ('many','pointwise'):
        a = plot_mask(m, n).images[0].get_array()
        assert np.asarray(a)==pytest.approx(100*m[n].float().flatten(2).mean(2).numpy()) and a.shape==m[n].shape[:2]

def test_mask_of_tickets_rounds_and_files(played, tmp_path):
    r = played.lottery.rounds[-1]
    want = r.masks['0.weight'].sum(0).reshape(8,8).numpy()
    t = Ticket.load(r.ticket.save(tmp_path/'t'))
    for o in (r, r.ticket, r.masks, played.lottery, t): assert (plot_mask(o).images[0].get_array()==want).all()
    assert len(plot_density([t,t]).lines)==2
    with pytest.raises(ValueError, match=r'picture of what all weights start from.*save\(path, dense=True\)'):
        plot_weights(t)
    assert len(plot_weights(Ticket.load(r.ticket.save(tmp_path/'t', dense=True))).patches)==2

def test_mask_errors(played):
    r = played.lottery.rounds[-1]
    says(r"of the 64 inputs of '0.weight'; got \(8, 9\)", plot_mask, r, None, (8,9))
    says(r'got \(64,\)', plot_mask, r, None, (64,))
    says("`layer` should be one of 0.weight, 2.weight; got '1.weight'", plot_mask, r, '1.weight')
    kernels = r"`shape` is for layers which read a picture.*'c' has shape \(2, 1, 3, 3\)"
    says(kernels, plot_mask, rand({'c':(2,1,3,3)}, .5), None, (3,3))
    says('expected `Masks`.*got dict', plot_mask, {}, e=TypeError)
    assert not plt.get_fignums()

# ---- weights

@pytest.mark.parametrize('layer', [None,'0.weight'])
def test_weights_draw_the_distributions(played, layer):
    t = played.lottery.ticket(2)
    ax = plot_weights(t, played.model, layer, bins=10)
    ns,trained = [layer] if layer else list(t.masks),dict(played.model.named_parameters())
    def joined(vs): return torch.cat(vs).detach().double().numpy()
    all_ = joined([t.weights[n].flatten() for n in ns])
    kept,after = [joined([ws[n][t.masks[n]] for n in ns]) for ws in (t.weights,trained)]
    labels = ['start, all','start, survivors','trained, survivors']
    for o,v,name in zip(ax.patches, (all_,kept,after), labels):
        values,edges,_ = o.get_data()
        assert len(edges)==11 and edges[0]==min(x.min() for x in (all_,after)) and o.get_label()==name
        assert values==pytest.approx(np.histogram(v, edges, density=True)[0])
        assert (values*np.diff(edges)).sum()==pytest.approx(1)
    assert texts(ax.get_legend().texts)==labels
    assert ax.get_title()==f"{'layer '+layer[0] if layer else 'all layers'}: {100*len(kept)/len(all_):.3g} % left"

def test_weights_of_rounds_and_states(played):
    t = played.lottery.ticket(2)
    assert [o.get_label() for o in plot_weights(played.lottery.rounds[2]).patches]==['start, all','start, survivors']
    of_model,of_state = [plot_weights(t, o).patches[2].get_data()[0] for o in (played.model,played.model.state_dict())]
    assert of_model.tolist()==of_state.tolist()

def test_weights_errors(played):
    t = played.lottery.ticket()
    says('`ticket` should be a `Ticket` or a `Round`, which have starting weights; got Masks', plot_weights, t.masks,
         e=TypeError)
    says("`layer` should be one of 0.weight, 2.weight; got 'x'", plot_weights, t, layer='x')
    says("`trained` and the masks do not match: .*'0.weight'", plot_weights, t, learner().model)
    bad = {k:v.clone() for k,v in t.weights.items()}
    bad['0.weight'][t.masks['0.weight']] = math.nan
    says('trained, survivors.*not all finite', plot_weights, t, bad)
    assert not plt.get_fignums()

def test_weights_of_a_layer_without_any(played):
    t = played.lottery.ticket()
    dead = Ticket(Masks({n:torch.zeros_like(m) for n,m in t.masks.items()}), t.weights)
    assert [o.get_label() for o in plot_weights(dead, played.model).patches]==['start, all']

# ---- moments

def test_moments_are_rows_and_zeros_have_no_colour():
    seen = {'a':tensor([1.,-2.,0.,.5]), 'b':nn.Parameter(tensor([[0.,4.],[0.,0.]]))}
    ax = plot_moments(seen)
    a = ax.images[0].get_array()
    assert np.ma.getmaskarray(a).tolist()==[[False,False,True,False],[True,False,True,True]], 'exactly 0, and only that'
    assert not any(x%1 for x in plot_moments({'a':torch.ones(20)}).get_xticks()), 'no half a weight'
    assert a.filled(9).tolist()==[[1,-2,9,.5],[9,4,9,9]] and texts(ax.get_yticklabels())==['a','b']
    lo,hi = ax.images[0].get_clim()
    assert lo==-hi and hi==pytest.approx(np.quantile([1,2,.5,4], .9)), 'white is 0'
    grey = ax.images[0].cmap(np.ma.masked)
    assert all(abs(np.array(ax.images[0].cmap(x))-grey).max()>.1 for x in np.linspace(0, 1, 9)), 'no value looks like a zero'
    assert plot_moments({'x':torch.zeros(3)}).images[0].get_array().mask.all()

def test_moments_errors():
    says("`moments` should be .* as many at each; got 2 at 'a', 3 at 'b'", plot_moments,
         {'a':torch.ones(2), 'b':torch.ones(3)})
    says('got none', plot_moments, {})
    assert not plt.get_fignums()

# ---- at one look

def kinds(axs): return [(o.get_title() or o.get_ylabel()) for o in axs]

def test_show_with_curves(played):
    old = seen(played)
    axs = played.lottery.show()
    r = played.lottery.rounds[-1]
    assert kinds(axs)==['accuracy (%)','validation loss','weights left in the layer (%)',
                        f"layer 0: {left(r.masks['0.weight'])}"]
    assert axs[1].lines[1].get_ydata().tolist()==played.lottery.rounds[1].curve.valid_loss.tolist()
    assert (axs[3].images[0].get_array()==r.masks['0.weight'].sum(0).reshape(8,8).numpy()).all()
    fig = axs[0].figure
    assert len(plt.get_fignums())==1 and texts(fig.legends[0].texts)==['round 0: 100 %','round 1: 50 %','round 2: 25 %']
    assert not any(o.get_legend() for o in axs)
    accs = f"accuracy {100*r['accuracy']:.2f} %, dense {100*played.lottery.rounds[0]['accuracy']:.2f} %"
    assert fig.get_suptitle()==f"round 2: {r['kept']} of {r['prunable']} weights left (25 %), {accs}"
    assert seen(played)==old
    others = kinds(played.lottery.show('es_iteration','2.weight'))[::3]
    assert others==['early-stop iteration',f"layer 2: {left(r.masks['2.weight'])}"]

def test_show_on_given_axes_and_its_errors(played):
    _,mine = plt.subplots(2, 2)
    n = len(plt.get_fignums())
    got = played.lottery.show(ax=mine)
    assert [a is b for a,b in zip(got, mine.flat)]==[True]*4 and all(a.lines or a.images for a in mine.flat)
    assert len(plt.get_fignums())==n
    plt.close('all')
    says("`layer` should be one of", played.lottery.show, layer='x')
    says("`monitor` should be one of", played.lottery.show, 'x')
    assert not plt.get_fignums(), 'no half figure is left behind'

def test_show_before_any_round():
    l = learner()
    for f in (l.lottery.show,l.lottery.plot):
        says(r'there are no rounds yet: learn.fit_lottery\(...\) plays them', f)
    assert not plt.get_fignums()

def test_show_without_curves_with_loss_only_and_with_one_round():
    l = learner()
    l.fit_lottery(1, rounds=0, seed=0)
    axs = l.lottery.show()
    axs[0].figure.canvas.draw()
    assert kinds(axs)[:3]==['accuracy (%)','loss','weights left in the layer (%)'] and not axs[0].figure.legends
    assert texts(axs[1].get_legend().texts)==['training loss','validation loss']
    assert axs[1].lines[0].get_ydata().tolist()==l.lottery.report(full=True).train_loss.tolist()
    l.metrics = L()
    l.fit_lottery(1, rounds=1, seed=0)
    axs = l.lottery.show()
    assert kinds(axs)[:3]==['validation loss','training loss','weights left in the layer (%)'] and len(axs)==4
    for r in l.lottery.rounds: del r.row['train_loss']
    assert kinds(l.lottery.show())[:2]==['validation loss','weights left in the layer (%)'] and len(l.lottery.show())==3

def test_show_of_many_rounds_draws_six():
    l = learner()
    l.fit_lottery(1, rounds=8, amount=.2, seed=0, eval_every=3)
    axs = l.lottery.show()
    assert [len(o.lines) for o in axs[1:3]]==[6,6] and len(axs[0].lines[0].get_xdata())==9
    assert axs[1].lines[-1].get_ydata().tolist()==l.lottery.rounds[-1].curve.valid_loss.tolist()
    l.lottery.rounds[3].curve = None
    assert kinds(l.lottery.show())[1]=='loss', 'curves of some rounds only, as after a change by hand'

# ---- no validation set

def test_without_a_validation_set_it_is_said_what_can_be_drawn():
    dls = data((4,))
    def net(): return nn.Sequential(nn.Linear(4,6), nn.ReLU(), nn.Linear(6,4))
    l = learner(net, dls=DataLoaders.from_dsets(dls.train_ds, [], bs=16))
    l.fit_lottery(1, rounds=1, seed=0, test_dl=dls.valid)
    for n in ('plot','show'):
        f,draw = getattr(l.lottery, n),rf"{n}\('train_loss'\) or {n}\('test_loss'\) or {n}\('test_accuracy'\)"
        for m in (None,'accuracy','valid_loss'):
            had = f"'{m or 'accuracy'}': it is measured on the validation set, and this lottery had none"
            says(f"no round has a figure of {had}. Give the DataLoaders some .* or draw what there is, {draw}", f, m)
        assert not plt.get_fignums()
    ax = l.lottery.plot('test_accuracy')
    assert ax.lines[0].get_ydata()==pytest.approx(100*l.lottery.report().test_accuracy.to_numpy())
    assert kinds(l.lottery.show('train_loss'))[:2]==['training loss','weights left in the layer (%)']
    full = 'test loss','training loss','weights left in the layer (%)'
    assert kinds(l.lottery.show('test_loss'))[:3]==[*full], 'nothing that is empty'
    no = "'round 0: 100 %' has no curve: .* had no validation set. Play it with DataLoaders .* to validate on"
    says(no, plot_curves, l.lottery.rounds)

def test_a_figure_that_is_nan_where_there_is_a_validation_set():
    l = learner()
    l.fit_lottery(1, rounds=1, seed=0)
    for r in l.lottery.rounds: r.row['accuracy'] = math.nan
    says(r"figure of 'accuracy': it is nan in each.*plot\('train_loss'\) or plot\('valid_loss'\)", l.lottery.plot)
    for r in l.lottery.rounds: del r.row['accuracy']
    says("figure of 'accuracy': .* was no metric of the lottery", l.lottery.show)
    assert not plt.get_fignums()

# ---- two nets, several masks

m3 = Masks(dict(a=tensor([[True,True],[False,True]]), b=tensor([True,False])))
w = dict(a=tensor([[3.,0.],[9.,4.]]), b=tensor([2.,5.]))
v = dict(a=tensor([[0.,0.],[-9.,-4.]]), b=tensor([-2.,5.]))

def test_plot_path_draws_the_figures():
    p = pd.DataFrame(dict(alpha=[0,.5,1], loss=[1.,3.,2.], error=[.1,.6,.3]))
    ax = plt.subplots()[1]
    assert plot_path({'x':p, 'y':Instability(.4, p)}, ax=ax) is ax
    assert ax.lines[0].get_ydata().tolist()==pytest.approx([10,60,30]) and ax.lines[1].get_ydata()[0]==pytest.approx(20)
    assert [o.get_text() for o in ax.get_legend().texts]==['x: barrier 40 pp','y: barrier 40 pp','thin: mean of both ends']
    looks = [(o.get_color(),o.get_marker(),o.get_linestyle()) for o in (ax.lines[0],ax.lines[2])]
    assert all(a!=b for a,b in zip(*looks))
    assert plot_path(p, 'loss').lines[0].get_ydata().tolist()==[1,3,2]
    says('no path to draw', plot_path, {})

def test_plot_layers_draws_the_figures():
    ax = plt.subplots()[1]
    t,s = stability(m3, w, v),sign_changes(m3, w, v)
    assert plot_layers({'x':t, 'y':2*t}, 'distance', ax=ax) is ax
    assert ax.lines[0].get_ydata().tolist()==pytest.approx(t.distance[:-1].tolist())
    assert ax.lines[3].get_ydata()[0]==pytest.approx(2*t.distance.total)
    assert [o.get_text() for o in ax.get_xticklabels()]==['a','b']
    assert ax.lines[0].get_marker()!=ax.lines[2].get_marker()
    ax = plot_layers(s, 'fraction')
    assert ax.lines[0].get_ydata().tolist()==pytest.approx([200/3,100])
    assert ax.get_legend() is None and ax.get_ylabel()=='changed sign (%)'
    says("no column 'angel'; it has kept, distance, angle", plot_layers, t, 'angel')
    says('tables of different layers', plot_layers, {'x':t, 'y':t.drop('a')}, 'angle')

def test_plot_overlap_draws_the_figures():
    ms = [rand(fc, .5, s) for s in range(3)]
    t,e = overlap_table(ms),random_overlap(ms)
    ax = plt.subplots()[1]
    assert plot_overlap(t, e, ax=ax) is ax and (ax.images[0].get_array()==t.values).all()
    assert {f'{t.iloc[0,1]:.2f}',f'({e.iloc[0,0]:.2f})','1.00'}<=set(texts(ax.texts)) and len(ax.texts)==18
    big = overlap_table([rand(fc, .5, s) for s in range(13)])
    assert not plot_overlap(big).texts
    says('`expected` should have the shape', plot_overlap, t, big)

def test_overlap_has_figures_or_a_scale():
    few,many = ([rand(fc, .5, s) for s in range(n)] for n in (3,13))
    a,b = plot_overlap(overlap_table(few)),plot_overlap(overlap_table(many))
    assert len(a.texts)==9 and a.images[0].colorbar is None and not b.texts
    assert b.images[0].colorbar.ax.get_ylabel()=='overlap'
