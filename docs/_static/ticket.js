// The picture that moves on "What a ticket looks like". Its frames stand in the page; without this script
// it shows the last
const root = document.querySelector('.ticket-slider')
if (root) {
  const all = JSON.parse(root.dataset.frames), dense = +root.dataset.dense
  const pick = root.querySelector('input'), svgs = root.querySelectorAll('svg'), said = root.querySelector('output')
  const ys = [...all.map(o => o.accuracy), dense], low = Math.min(...ys)-.005, high = Math.max(...ys)+.005
  const end = Math.log(all[all.length-1].density)
  const x = o => 40+200*Math.log(o.density)/end, y = a => 150-130*(a-low)/(high-low)
  const percent = d => (100*d).toPrecision(3)+' %'
  const rect = (a, b, w, h, more) => `<rect x="${a}" y="${b}" width="${w}" height="${h}" ${more}/>`
  const text = (a, b, s) => `<text x="${a}" y="${b}" font-size="11" fill="currentColor">${s}</text>`
  const frame = 'fill="none" stroke="currentColor" opacity=".4"', green = 'fill="#2a9d6f"'

  const curve = o => {
    const line = all.map(o => `${x(o)},${y(o.accuracy)}`).join(' ')
    return `<polyline points="${line}" fill="none" stroke="#2a9d6f" stroke-width="1.5"/>`
      +`<line x1="40" x2="240" y1="${y(dense)}" y2="${y(dense)}" stroke="currentColor" stroke-width=".8" opacity=".6"/>`
      +`<circle cx="${x(o)}" cy="${y(o.accuracy)}" r="5" ${green}/>`
      +text(40, y(dense)-4, 'dense')+text(40, 178, 'weights left: '+percent(o.density))
  }
  const pixels = o => {
    const side = Math.sqrt(o.pixels.length), w = 136/side
    const most = Math.max(...o.pixels)
    const ink = n => `fill="currentColor" opacity="${(n/most).toFixed(3)}"`
    const cell = (n, i) => rect(290+w*(i%side), 14+w*Math.floor(i/side), w, w, ink(n))
    const read = o.pixels.filter(n => n).length
    return o.pixels.map(cell).join('')+rect(290, 14, 136, 136, frame)
      +text(290, 178, `${read} of ${o.pixels.length} pixels read`)
  }
  const bar = (d, i) => text(470, 26+40*i, `layer ${i+1}: ${percent(d)}`)
    +rect(470, 32+40*i, 150, 10, frame)+rect(470, 32+40*i, 150*d, 10, green)
  const show = k => {
    const o = all[k]
    const size = text(470, 178, `file: ${(o.bytes/1000).toFixed(1)} kB`)
    const parts = [curve(o), pixels(o), o.layers.map(bar).join('')+size]
    parts.forEach((s, i) => svgs[i].innerHTML = s)
    said.textContent = `round ${o.round}: ${percent(o.density)} of the weights, ${(100*o.accuracy).toFixed(1)} % right`
  }
  pick.addEventListener('input', () => show(+pick.value))
  show(+pick.value)
}
