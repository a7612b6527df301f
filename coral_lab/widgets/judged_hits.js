// Cards that can be marked, by a click or by keys. A mark is sent to the kernel, and shown when it says that it
// was kept.
const GRADES = ["right", "partly", "wrong"]; // keys 1, 2 and 3
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

function render({ model, el }) {
  const list = document.createElement("div");
  list.className = "coral-judged mathjax_ignore";
  list.setAttribute("role", "list");
  list.dataset.lmSuppressShortcuts = "true"; // in JupyterLab a digit makes a cell a heading
  el.append(list);
  const sent = new Set();

  const gradeOf = (id) => model.get("marks")[id]?.grade ?? null;

  // The word is the one that is read, for a mark that carries it may still be on its way; the query is the one
  // that is seen, for the kernel may be about to show another.
  function mark(card, grade) {
    const { id } = card.dataset;
    if (grade) sent.add(id);
    else sent.delete(id);
    model.send({ query: model.get("query"), id, grade, word: card.querySelector("input").value });
  }

  function goOn(card) {
    const cards = [...list.children];
    const after = [...cards.slice(cards.indexOf(card) + 1), ...cards.slice(0, cards.indexOf(card))];
    (after.find((own) => !gradeOf(own.dataset.id) && !sent.has(own.dataset.id)) ?? card).focus();
  }

  function made({ id, label, html }) {
    const card = document.createElement("div");
    card.className = "coral-card";
    card.dataset.id = id;
    card.tabIndex = 0;
    card.setAttribute("role", "listitem");
    card.setAttribute("aria-label", label);
    const shown = document.createElement("div");
    shown.innerHTML = html; // escaped by the kernel
    const marks = document.createElement("div");
    marks.className = "coral-marks";
    GRADES.forEach((grade, n) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.grade = grade;
      button.title = `mark as ${grade}: key ${n + 1}`;
      button.addEventListener("click", () => mark(card, gradeOf(id) === grade ? null : grade));
      marks.append(button);
    });
    const word = document.createElement("input");
    word.type = "text";
    word.maxLength = 200;
    word.placeholder = "a word why";
    word.setAttribute("aria-label", `a word why, of ${label}`);
    word.addEventListener("change", () => mark(card, gradeOf(id)));
    card.append(shown, marks, word);
    return card;
  }

  function show() {
    for (const card of list.children) {
      const own = model.get("marks")[card.dataset.id];
      card.dataset.grade = own?.grade ?? "";
      for (const button of card.querySelectorAll("button")) {
        const pressed = button.dataset.grade === own?.grade;
        button.setAttribute("aria-pressed", String(pressed));
        const key = GRADES.indexOf(button.dataset.grade) + 1;
        button.textContent = `${pressed ? "✓" : key} ${button.dataset.grade}`;
      }
      const word = card.querySelector("input");
      word.disabled = !own; // a word belongs to a mark
      if (word !== document.activeElement) word.value = own?.word ?? "";
    }
  }

  const forget = () => sent.clear();

  function build() {
    forget();
    list.replaceChildren(...model.get("cards").map(made));
    show();
  }

  list.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const card = event.target.closest(".coral-card");
    if (!card || event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const cards = [...list.children];
    if (event.key in STEPS) {
      cards[cards.indexOf(card) + STEPS[event.key]]?.focus();
    } else if (["1", "2", "3"].includes(event.key)) {
      if (!event.repeat) { // a key that is held down judges one card
        mark(card, GRADES[event.key - 1]);
        goOn(card);
      }
    } else if (["0", "Backspace", "Delete"].includes(event.key)) {
      mark(card, null);
    } else {
      return;
    }
    event.preventDefault();
  });
  model.on("change:cards", build);
  model.on("change:query", forget);
  model.on("change:marks", show);
  build();
  return () => {
    model.off("change:cards", build);
    model.off("change:query", forget);
    model.off("change:marks", show);
  };
}

export default { render };
