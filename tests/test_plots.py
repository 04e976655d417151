"Pictures of 40_plots: what is drawn is what was given, on the axes that were given, and nothing is trained or touched"
import math
import pytest
import matplotlib.pyplot as plt
import numpy as np,pandas as pd
from nets import *
from fastai_lottery.analysis import overlap_table,plot_overlap,plot_path,plot_layers,stability
from fastai_lottery.sizes import layer_table
from fastai_lottery.statistics import interval
from fastai_lottery.plots import *
from fastai_lottery.plots import _ticks,_words

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
    return pd.DataFrame([{'arm':a if k else 'dense', 'seed':s, 'round':k, 'density':.5**k, col:.9-.01*k-.001*i+.01*rng.normal(), 'es_iteration':100*k+s}
                         for i,a in enumerate(arms) for s in range(seeds) for k in rounds if k or a=='ticket'])
def texts(ls): return [o.get_text() for o in ls]
def looks(ax): return {o.get_label():(o.get_color(),o.get_marker(),o.get_linestyle(),repr(o._unscaled_dash_pattern)) for o in ax.lines if not o.get_label().startswith('_')}

# ---- one style, given axes, nothing touched

def all_plots(l, ax):
    "Each picture, drawn on `ax`"
    rs = l.lottery.rounds
    t = rs[-1].ticket
    m3 = stability(t, t.weights, l.model)
    path = pd.DataFrame(dict(alpha=[0,.5,1], loss=[1.,3.,2.], error=[.1,.6,.3]))
    return dict(arms=lambda: plot_arms(table('ticket','one_shot'), 'es_test_accuracy', ax), curves=lambda: plot_curves(rs, ax=ax), density=lambda: plot_density(rs, ax),
                mask=lambda: plot_mask(t, ax=ax), weights=lambda: plot_weights(t, l.model, ax=ax), report=lambda: l.lottery.plot(ax=ax),
                overlap=lambda: plot_overlap(overlap_table(rs), ax=ax), path=lambda: plot_path(path, ax=ax), layers=lambda: plot_layers(m3, 'angle', ax=ax))
names = 'arms curves density mask weights report overlap path layers'.split()

def seen(l): return (hash_of(l.model.state_dict()), l.model.training, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), l.dls.train.rng.getstate(),
                     len(l.lottery.rounds), [r.masks.hash() for r in l.lottery.rounds], [r.curve.to_csv() for r in l.lottery.rounds], len(l.cbs))
def hash_of(s): return hashlib.sha256(b''.join(v.numpy().tobytes() for v in s.values())).hexdigest()

@pytest.mark.parametrize('name', names)
def test_draws_on_the_axes_given_and_touches_nothing(name, played, monkeypatch):
    ax = plt.subplots()[1]
    f = all_plots(played, ax)[name]
    for o in ('fit','_do_fit','one_batch','validate','evaluate'): monkeypatch.setattr(Learner, o, lambda *a,**k: pytest.fail('a picture trains nothing'))
    old,figs = seen(played),plt.get_fignums()
    assert f() is ax and plt.get_fignums()==figs and ax.has_data()
    assert seen(played)==old

@pytest.mark.parametrize('name', names)
def test_makes_axes_of_its_own(name, played):
    ax = all_plots(played, None)[name]()
    assert len(plt.get_fignums())==1 and ax.figure.get_layout_engine() is not None
    ax.figure.canvas.draw()

@pytest.mark.parametrize('name', [o for o in names if o not in ('mask','overlap')])
def test_one_style(name, played):
    ax = all_plots(played, None)[name]()
    assert not ax.spines['top'].get_visible() and not ax.spines['right'].get_visible() and ax.xaxis.get_gridlines()[0].get_visible()
    assert ax.get_xlabel() and ax.get_ylabel() and ax.figure.get_facecolor()[:3]==(1,1,1)

def test_lines_differ_by_colour_marker_and_dashes():
    many = [f'arm_{i}' for i in range(30)]
    ls = looks(plot_arms(table('ticket','reinit','random',*many, rounds=(0,1)), 'es_test_accuracy'))
    assert len(ls)==34 and len(set(ls.values()))==34
    few = [v for k,v in ls.items() if k!='dense'][:7]
    for i in range(2): assert len({o[i] for o in few})==7
    assert len({o[2:] for o in few})==7

# ---- weights remaining

def test_arms_draw_means_and_bands():
    df = table('ticket','reinit','random','one_shot')
    ax = plot_arms(df, 'es_test_accuracy')
    for a,name in dict(ticket='winning ticket', reinit='random re-initialisation', random='random mask', one_shot='one shot').items():
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
    assert dense.get_ydata()[0]==pytest.approx(100*df[df.arm=='dense'].es_test_accuracy.mean()) and dense.get_marker()=='None'
    assert texts(ax.get_legend().texts)==['winning ticket','random re-initialisation','random mask','dense','one shot']

def test_arms_axis_is_logarithmic_from_dense_to_sparse():
    ax = plot_arms(table('ticket'), 'es_test_accuracy')
    assert ax.get_xscale()=='log' and ax.xaxis_inverted() and ax.get_xlabel()=='weights remaining (%)' and ax.get_ylabel()=='test accuracy at early stop (%)'
    assert texts(ax.get_xticklabels())==['100','50','20','10'] and ax.get_xticks().tolist()==[1,.5,.2,.1]
    plot_arms(table('reinit', rounds=(1,9)), 'es_test_accuracy', ax)
    assert ax.xaxis_inverted() and ax.get_xticks()[0]==1 and ax.get_xticks()[-1]<=.005, 'a second picture on the same axes keeps their direction and has room for both'

def test_the_usual_arms_always_look_the_same():
    one,two = (looks(plot_arms(table(*a), 'es_test_accuracy')) for a in (('ticket','reinit','random'),('zzz','random','other','ticket')))
    for n in ('winning ticket','random mask'): assert one[n]==two[n]
    ax = plot_arms(table('ticket','zzz'), 'es_test_accuracy', legend=False)
    assert ax.get_legend() is None and arms.keys()=={'ticket','reinit','random','dense'}

def test_arms_without_a_figure_are_left_out_and_gaps_are_none():
    df = table('ticket','reinit','random')
    df.loc[df.arm=='random','es_test_accuracy'] = np.nan
    df.loc[(df.arm=='reinit')&(df.seed==0),'es_test_accuracy'] = np.nan
    ax = plot_arms(df, 'es_test_accuracy')
    assert texts(ax.get_legend().texts)==['winning ticket','random re-initialisation','dense']
    line, = [o for o in ax.lines if o.get_label()=='random re-initialisation']
    assert line.get_ydata()==pytest.approx(100*df[(df.arm=='reinit')&(df.seed>0)].groupby('round').es_test_accuracy.mean().to_numpy())

def test_units():
    assert [_words(o) for o in ('accuracy','es_test_accuracy','valid_loss','es_iteration','train_loss','error_rate','perplexity','es_valid_loss')]==[
        'accuracy (%)','test accuracy at early stop (%)','validation loss','early-stop iteration','training loss','error rate (%)','perplexity','validation loss at early stop']
    df = table('ticket')
    raw = df.query("arm=='dense'").es_test_accuracy.mean()
    for scale,k,label in ((None,100,'test accuracy at early stop (%)'),(1,1,'test accuracy at early stop'),(10,10,'test accuracy at early stop')):
        ax = plot_arms(df, 'es_test_accuracy', scale=scale)
        assert ax.lines[0].get_ydata()[0]==pytest.approx(k*raw) and ax.get_ylabel()==label
    assert plot_arms(df, 'es_iteration').lines[0].get_ydata().tolist()==[1,101,201,401]
    assert plot_arms(df, 'es_iteration', label='mine').get_ylabel()=='mine'

def test_ticks():
    assert _ticks([1,.03])==[1,.5,.2,.1,.05] and _ticks([1,.9,.81])==[1,.9,.81] and _ticks([1])==[1]
    assert _ticks([1,1e-4])==[1,.1,.01,.001,1e-4] and len(_ticks([1,.002]))==9
    assert len(_ticks(.98**np.arange(20)))<=6 and _ticks([1,.45], own=False)==pytest.approx([.6,.8,1])

def test_arms_errors():
    df = table('ticket')
    with pytest.raises(ValueError, match=r"no column 'accuracy'; it has arm, seed, round, density, es_test_accuracy, es_iteration"): plot_arms(df, 'accuracy')
    with pytest.raises(ValueError, match="no column 'arm'"): plot_arms(df.drop(columns='arm'), 'es_iteration')
    with pytest.raises(ValueError, match="no training in the table has a figure of 'x'"): plot_arms(df.assign(x=np.nan), 'x')
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="no column 'es_test_accuracy'"): plot_lottery(df.drop(columns='es_test_accuracy'))
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
    _,mine = plt.subplots(1, 3)
    got = plot_lottery(df, 'mine', ax=mine[:2])
    assert got[0] is mine[0] and got[1] is mine[1] and mine[0].lines and mine[1].lines and not mine[2].lines and mine[0].get_title().startswith('mine: mean') and not mine[0].figure.legends
    n = len(plt.get_fignums())
    with pytest.raises(ValueError, match="`ax` should be 2 axes for as many pictures; got 3"): plot_lottery(df, ax=mine)
    assert len(plt.get_fignums())==n

# ---- one run

def test_plot_draws_the_report(played):
    df = played.lottery.report()
    ax = played.lottery.plot()
    assert ax.lines[0].get_ydata()==pytest.approx(100*df.accuracy.to_numpy()) and ax.lines[0].get_xdata().tolist()==df.density.tolist() and ax.lines[1].get_ydata()[0]==pytest.approx(100*df.accuracy[0])
    assert ax.get_ylabel()=='accuracy (%)' and ax.get_xscale()=='log' and ax.xaxis_inverted()
    assert played.lottery.plot('es_iteration').lines[0].get_ydata().tolist()==df.es_iteration.tolist()
    assert played.lottery.plot('valid_loss').lines[0].get_ydata()==pytest.approx(df.valid_loss.to_numpy())
    with pytest.raises(ValueError, match="`monitor` should be one of valid_loss, accuracy; got 'f1'"): played.lottery.plot('f1')

def test_curves_draw_the_curves(played):
    rs = played.lottery.rounds
    ax = plot_curves(rs)
    assert len(ax.lines)==3 and texts(ax.get_legend().texts)==['round 0: 100 %','round 1: 50 %','round 2: 25 %'] and (ax.get_xlabel(),ax.get_ylabel())==('iteration','validation loss')
    for o,r in zip(ax.lines, rs):
        assert o.get_xdata().tolist()==r.curve.iteration.tolist() and o.get_ydata().tolist()==r.curve.valid_loss.tolist()
        assert r.curve.iteration[o.get_markevery()[0]]==r['es_iteration'] and len(o.get_markevery())==1
    ax = plot_curves(rs, 'accuracy')
    assert ax.lines[2].get_ydata()==pytest.approx(100*rs[2].curve.accuracy.to_numpy()) and rs[2].curve.iteration[ax.lines[2].get_markevery()[0]]==rs[2]['es_iteration'], 'the early stop is that of the loss'

def test_curves_of_tables_and_names():
    d = pd.DataFrame(dict(iteration=[10,20,30], valid_loss=[3.,1.,2.], accuracy=[.1,.2,.3])).set_axis([7,3,5])
    ax = plot_curves(d)
    assert len(ax.lines)==1 and ax.get_legend() is None and ax.lines[0].get_markevery()==[1]
    ax = plot_curves({'x':d, 'y':d.drop(columns='valid_loss')}, 'accuracy')
    assert texts(ax.get_legend().texts)==['x','y'] and ax.lines[1].get_markevery()==[] and plot_curves([d,d], legend=False).get_legend() is None
    lum = [.299*r+.587*g+.114*b for r,g,b,*_ in (plt.matplotlib.colors.to_rgb(o.get_color()) for o in plot_curves([d]*9).lines)]
    assert lum==sorted(lum) and lum[0]==0 and lum[-1]<.6, 'rounds go from dark to light, and the last can still be seen on white'

def test_curves_errors(played):
    plain = learner()
    plain.fit_lottery(1, rounds=1, seed=0)
    with pytest.raises(ValueError, match=r"'round 0: 100 %' has no curve: fit_lottery\(..., eval_every=100\)"): plot_curves(plain.lottery.rounds)
    with pytest.raises(ValueError, match="'mine' has no curve"): plot_curves({'mine':plain.lottery.rounds[1]})
    with pytest.raises(ValueError, match="curve of 'round 0: 100 %' has no column 'f1'; it has iteration, valid_loss, accuracy"): plot_curves(played.lottery.rounds, 'f1')
    with pytest.raises(ValueError, match="there is no round to draw"): plot_curves([])
    with pytest.raises(TypeError, match='a curve as a DataFrame; got int'): plot_curves([3])
    assert not plt.get_fignums()

# ---- layers

def test_density_draws_each_layer(played):
    rs = played.lottery.rounds
    ax = plot_density(rs)
    for o,r in zip(ax.lines, rs): assert o.get_ydata()==pytest.approx(100*layer_table(r.masks).density[:-1].to_numpy())
    assert texts(ax.get_xticklabels())==['0','2'] and ax.get_yscale()=='log' and texts(ax.get_legend().texts)==['round 0: 100 %','round 1: 50 %','round 2: 25 %']
    for o in (rs[-1],rs[-1].ticket,rs[-1].masks,played.lottery): assert len((p := plot_density(o)).lines)==1 and p.lines[0].get_ydata().tolist()==ax.lines[-1].get_ydata().tolist() and p.get_legend() is None

def test_density_shows_layers_without_a_weight():
    m = rand(fc, .5)
    dead = Masks({n:torch.zeros_like(o) if n=='b' else o for n,o in m.items()})
    ax = plot_density({'x':m, 'y':dead})
    assert np.isnan(ax.lines[1].get_ydata()).tolist()==[False,True,False] and ax.lines[2].get_marker()=='x' and ax.lines[2].get_xdata().tolist()==[1]
    assert texts(ax.get_yticklabels())[-1]=='0' and ax.get_yticks()[-1]==ax.lines[2].get_ydata()[0]<min(np.nanmin(o.get_ydata()) for o in ax.lines[:2])
    assert '0' not in texts(plot_density(m).get_yticklabels())
    plot_density(Masks({'a':torch.zeros(3,3).bool()})).figure.canvas.draw()
    with pytest.raises(ValueError, match='masks of different weights'): plot_density([m, rand(dict(a=(2,2)), .5)])
    with pytest.raises(TypeError, match='expected `Masks`.*got int'): plot_density([3])

# ---- masks

def test_mask_of_a_picture():
    m = rand({'first':(300,784), 'c':(5,3*32*32), 'last':(10,300)}, .2)
    ax = plot_mask(m)
    assert (ax.images[0].get_array()==m['first'].sum(0).reshape(28,28).numpy()).all()
    assert ax.get_title()==f"first: {100*m['first'].float().mean():.3g} % left" and not ax.get_xticks().size
    assert ax.images[0].colorbar.ax.get_ylabel()=='weights left at the pixel' and ax.images[0].get_clim()[0]==0
    a = plot_mask(m, 'c', shape=(3,32,32)).images[0].get_array()
    assert a.shape==(32,32) and (a==m['c'].sum(0).reshape(3,32,32).sum(0).numpy()).all()
    assert plot_mask(Masks({'c':m['c']})).images[0].get_array().shape==(32,32), 'guessed: three colours'
    assert plot_mask(m, shape=(14,56)).images[0].get_array().shape==(14,56)
    assert plot_mask(Masks({'e':rand({'e':(7,400)}, .2)['e']})).images[0].get_array().shape==(7,100), '400 inputs are no picture, although 20×20'
    two = rand({'first':(64,64), 'second':(9,64)}, .5)
    assert [plot_mask(two, n).images[0].get_array().shape for n in two]==[(8,8),(9,64)], 'only the first layer reads pictures, where nothing else is said'

def test_mask_of_a_matrix_and_a_vector():
    m = rand({'m':(10,30), 'v':(12,), 'big':(301,130)}, .3)
    assert (plot_mask(m).images[0].get_array()==m['m'].numpy()).all() and (plot_mask(m,'v').images[0].get_array()==m['v'].numpy()[None]).all()
    a = plot_mask(m, 'big').images[0].get_array()
    w = 100*m['big'].float().numpy()
    assert a.shape==(101,65) and a[3,4]==pytest.approx(w[9:12,8:10].mean()) and a[-1,-1]==pytest.approx(w[300:,128:].mean()), 'blocks of 3×2, the last ones smaller'
    assert (plot_mask(Masks.ones(m), 'big').images[0].get_array()==100).all()

def test_mask_of_kernels():
    m = rand({'c':(6,2,3,3), 'one':(5,1,4), 'many':(20,50,3,3), 'pointwise':(8,4,1,1), 'vol':(2,1,2,3,3)}, .5)
    a = plot_mask(m).images[0].get_array()
    c = m['c'].reshape(12,3,3).numpy()
    cols = (a.shape[1]-1)//4
    assert cols%2==0, 'whole filters in a row'
    for j,k in enumerate(c):
        r,q = divmod(j, cols)
        assert (a[4*r+1:4*r+4, 4*q+1:4*q+4]==k).all()
    assert a.mask[0].all() and a.mask[:,0].all() and a.mask[4].all() and (~a.mask).sum()==c.size, 'gaps are neither kept nor pruned'
    assert (~plot_mask(m,'one').images[0].get_array().mask).sum()==20 and (~plot_mask(m,'vol').images[0].get_array().mask).sum()==36
    for n in ('many','pointwise'):
        a = plot_mask(m, n).images[0].get_array()
        assert np.asarray(a)==pytest.approx(100*m[n].float().flatten(2).mean(2).numpy()) and a.shape==m[n].shape[:2]

def test_mask_of_tickets_rounds_and_files(played, tmp_path):
    r = played.lottery.rounds[-1]
    want = r.masks['0.weight'].sum(0).reshape(8,8).numpy()
    for o in (r, r.ticket, r.masks, played.lottery, Ticket.load(r.ticket.save(tmp_path/'t'))): assert (plot_mask(o).images[0].get_array()==want).all()
    t = Ticket.load(tmp_path/'t')
    assert len(plot_density([t,t]).lines)==2 and len(plot_weights(t).patches)==2

def test_mask_errors(played):
    r = played.lottery.rounds[-1]
    for args,msg in (((None,(8,9)), r"of the 64 inputs of '0.weight'; got \(8, 9\)"), ((None,(64,)), r'got \(64,\)'), (('1.weight',), "`layer` should be one of 0.weight, 2.weight; got '1.weight'")):
        with pytest.raises(ValueError, match=msg): plot_mask(r, *args)
    with pytest.raises(ValueError, match=r"`shape` is for layers which read a picture.*'c' has shape \(2, 1, 3, 3\)"): plot_mask(rand({'c':(2,1,3,3)}, .5), shape=(3,3))
    with pytest.raises(TypeError, match='expected `Masks`.*got dict'): plot_mask({})
    assert not plt.get_fignums()

# ---- weights

@pytest.mark.parametrize('layer', [None,'0.weight'])
def test_weights_draw_the_distributions(played, layer):
    t = played.lottery.ticket(2)
    ax = plot_weights(t, played.model, layer, bins=10)
    ns,trained = [layer] if layer else list(t.masks),dict(played.model.named_parameters())
    all_,kept,after = (torch.cat(o).detach().double().numpy() for o in ([t.weights[n].flatten() for n in ns],[t.weights[n][t.masks[n]] for n in ns],[trained[n][t.masks[n]] for n in ns]))
    for o,v,name in zip(ax.patches, (all_,kept,after), ('start, all','start, survivors','trained, survivors')):
        values,edges,_ = o.get_data()
        assert len(edges)==11 and edges[0]==min(x.min() for x in (all_,after)) and values==pytest.approx(np.histogram(v, edges, density=True)[0]) and o.get_label()==name
        assert (values*np.diff(edges)).sum()==pytest.approx(1)
    assert texts(ax.get_legend().texts)==['start, all','start, survivors','trained, survivors'] and ax.get_title()==f"{layer or 'all layers'}: {100*len(kept)/len(all_):.3g} % left"
    assert [o.get_label() for o in plot_weights(played.lottery.rounds[2]).patches]==['start, all','start, survivors']
    assert plot_weights(t, played.model.state_dict(), layer, bins=10).patches[2].get_data()[0].tolist()==ax.patches[2].get_data()[0].tolist()

def test_weights_errors(played):
    t = played.lottery.ticket()
    with pytest.raises(TypeError, match='`ticket` should be a `Ticket` or a `Round`, which have starting weights; got Masks'): plot_weights(t.masks)
    with pytest.raises(ValueError, match="`layer` should be one of 0.weight, 2.weight; got 'x'"): plot_weights(t, layer='x')
    with pytest.raises(ValueError, match="`trained` and the masks do not match: .*'0.weight'"): plot_weights(t, learner().model)
    bad = {k:v.clone() for k,v in t.weights.items()}
    bad['0.weight'][t.masks['0.weight']] = math.nan
    with pytest.raises(ValueError, match='trained, survivors.*not all finite'): plot_weights(t, bad)
    assert not plt.get_fignums()

def test_weights_of_a_layer_without_any(played):
    t = played.lottery.ticket()
    dead = Ticket(Masks({n:torch.zeros_like(m) for n,m in t.masks.items()}), t.weights)
    assert [o.get_label() for o in plot_weights(dead, played.model).patches]==['start, all']

# ---- at one look

def kinds(axs): return [(o.get_title() or o.get_ylabel()) for o in axs]

def test_show_with_curves(played):
    old = seen(played)
    axs = played.lottery.show()
    r = played.lottery.rounds[-1]
    assert kinds(axs)==['accuracy (%)','validation loss','weights left in the layer (%)',f"0.weight: {100*r.masks['0.weight'].float().mean():.3g} % left"]
    assert axs[1].lines[1].get_ydata().tolist()==played.lottery.rounds[1].curve.valid_loss.tolist() and (axs[3].images[0].get_array()==r.masks['0.weight'].sum(0).reshape(8,8).numpy()).all()
    fig = axs[0].figure
    assert len(plt.get_fignums())==1 and texts(fig.legends[0].texts)==['round 0: 100 %','round 1: 50 %','round 2: 25 %'] and not any(o.get_legend() for o in axs)
    assert fig.get_suptitle()==f"round 2: {r['kept']} of {r['prunable']} weights left (25 %), accuracy {100*r['accuracy']:.2f} %, dense {100*played.lottery.rounds[0]['accuracy']:.2f} %"
    assert seen(played)==old
    assert kinds(played.lottery.show('es_iteration','2.weight'))[::3]==['early-stop iteration',f"2.weight: {100*r.masks['2.weight'].float().mean():.3g} % left"]
    _,mine = plt.subplots(2, 2)
    n = len(plt.get_fignums())
    got = played.lottery.show(ax=mine)
    assert [a is b for a,b in zip(got, mine.flat)]==[True]*4 and all(a.lines or a.images for a in mine.flat) and len(plt.get_fignums())==n
    plt.close('all')
    with pytest.raises(ValueError, match="`layer` should be one of"): played.lottery.show(layer='x')
    with pytest.raises(ValueError, match="`monitor` should be one of"): played.lottery.show('x')
    assert not plt.get_fignums(), 'no half figure is left behind'

def test_show_without_curves_with_loss_only_with_one_round_and_before_any():
    l = learner()
    for f in (l.lottery.show,l.lottery.plot):
        with pytest.raises(ValueError, match=r'there are no rounds yet: learn.fit_lottery\(...\) plays them'): f()
    assert not plt.get_fignums()
    l.fit_lottery(1, rounds=0, seed=0)
    axs = l.lottery.show()
    axs[0].figure.canvas.draw()
    assert kinds(axs)[:3]==['accuracy (%)','loss','weights left in the layer (%)'] and not axs[0].figure.legends
    assert texts(axs[1].get_legend().texts)==['training loss','validation loss'] and axs[1].lines[0].get_ydata().tolist()==l.lottery.report().train_loss.tolist()
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

def test_overlap_has_figures_or_a_scale():
    few,many = ([rand(fc, .5, s) for s in range(n)] for n in (3,13))
    a,b = plot_overlap(overlap_table(few)),plot_overlap(overlap_table(many))
    assert len(a.texts)==9 and a.images[0].colorbar is None and not b.texts and b.images[0].colorbar.ax.get_ylabel()=='overlap'
