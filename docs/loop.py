"Draw the loop, four moments of one small net, as nbs/loop_*.svg: `python docs/loop.py`"
from pathlib import Path
import numpy as np

layers = [4,5,3]
def xy(l, i): return 22+68*l, 14+(84-14)*(i+.5)/layers[l]
links = [(l,i,j) for l in (0,1) for i in range(layers[l]) for j in range(layers[l+1])]
rng = np.random.default_rng(3)
start,trained = rng.uniform(.3, 1, len(links)),rng.uniform(.1, 1.6, len(links))**1.6
small = trained<np.sort(trained)[len(links)//2]
style = '<style>svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#d0d7de}}</style>'
green,brown = '#2a9d6f','#b5651d'

def line(k, width, colour, dashed=False):
    l,i,j = links[k]
    (a,b),(c,d) = xy(l, i),xy(l+1, j)
    dash = ' stroke-dasharray="2 3"' if dashed else ''
    at = f'x1="{a:.0f}" y1="{b:.1f}" x2="{c:.0f}" y2="{d:.1f}"'
    return f'<line {at} stroke="{colour}" stroke-width="{width:.1f}"{dash}/>'

def drawing(n, word, told, lines):
    dots = [f'<circle cx="{x:.0f}" cy="{y:.1f}" r="3.5" fill="currentColor"/>'
            for l,k in enumerate(layers) for x,y in (xy(l, i) for i in range(k))]
    arrow = '↺' if n==4 else '→'
    text = [f'<text x="0" y="110" font-size="13" font-weight="600" fill="currentColor">{n}  {word}</text>',
            f'<text x="0" y="126" font-size="10.5" fill="currentColor" opacity=".85">{told}</text>',
            f'<text x="184" y="58" font-size="20" fill="currentColor">{arrow}</text>']
    head = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 206 132" '
            'font-family="system-ui, sans-serif" width="206">')
    return ''.join([head, style, *lines, *dots, *text, '</svg>'])+'\n'

ks = range(len(links))
moments = [
    ('train', 'a whole fit, all weights', [line(k, .4+1.6*trained[k], 'currentColor') for k in ks]),
    ('score', 'which weights matter least?', [line(k, .4+1.6*trained[k], brown if small[k] else 'currentColor', small[k]) for k in ks]),
    ('mask', 'those are 0 from now on', [line(k, .4+1.6*trained[k], 'currentColor') for k in ks if not small[k]]),
    ('rewind', 'the others begin again', [line(k, .4+1.2*start[k], green) for k in ks if not small[k]])]
for n,(word,told,lines) in enumerate(moments, 1):
    (Path(__file__).parent.parent/'nbs'/f'loop_{n}.svg').write_text(drawing(n, word, told, lines), encoding='utf-8')
