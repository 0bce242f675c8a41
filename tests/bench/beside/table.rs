//! What came of it: each figure beside what it is compared with.

use std::fmt;

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

/// One figure of Tidelock's, the same of somebody else's, and what is aimed at.
#[derive(Debug)]
struct Row {
    work: String,
    figure: &'static str,
    ours: Vec<f64>,
    beside: Option<(&'static str, Vec<f64>)>,
    goal: Goal,
}

/// What section a figure should reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At least so many times the other's.
    Times(f64),
    /// At most so many times the other's.
    Within(f64),
    /// At most so much more than the other's.
    Above(f64),
    /// At most so much.
    AtMost(f64),
    /// None is set.
    Open,
}

impl Table {
    /// Puts down what Tidelock gave in each round, beside what the other one did.
    pub(crate) fn row(
        &mut self,
        work: impl Into<String>,
        figure: &'static str,
        ours: Vec<f64>,
        beside: Option<(&'static str, Vec<f64>)>,
        goal: Goal,
    ) {
        self.0.push(Row { work: work.into(), figure, ours, beside, goal });
    }

    pub(crate) fn json(&self) -> String {
        let rows = self.0.iter().map(|row| {
            let beside = row.beside.as_ref();
            serde_json::json!({
                "work": row.work,
                "figure": row.figure,
                "tidelock": row.ours,
                "beside": beside.map(|(name, figures)| serde_json::json!({ "name": name, "rounds": figures })),
                "ratio": row.ratio(),
                "goal": row.goal.to_string(),
                "met": row.is_met(),
            })
        });
        format!("{:#}\n", serde_json::Value::Array(rows.collect()))
    }
}

impl Row {
    fn ours(&self) -> f64 {
        median(&self.ours)
    }

    fn theirs(&self) -> Option<f64> {
        self.beside.as_ref().map(|(_, figures)| median(figures))
    }

    fn ratio(&self) -> Option<f64> {
        self.theirs().map(|theirs| self.ours() / theirs)
    }

    fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::Times(least) => self.ratio().map(|ratio| ratio >= least),
            Goal::Within(most) => self.ratio().map(|ratio| ratio <= most),
            Goal::Above(most) => self.theirs().map(|theirs| self.ours() - theirs <= most),
            Goal::AtMost(most) => Some(self.ours() <= most),
            Goal::Open => None,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Times(least) => write!(f, "≥ {least} ×"),
            Goal::Within(most) => write!(f, "≤ {most} ×"),
            Goal::Above(most) => write!(f, "≤ +{most}"),
            Goal::AtMost(most) => write!(f, "≤ {most}"),
            Goal::Open => Ok(()),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| work | figure | Tidelock | beside | ratio | goal | |")?;
        writeln!(f, "|---|---|---:|---:|---:|---:|---|")?;
        for row in &self.0 {
            let beside =
                row.beside.as_ref().map(|(name, figures)| format!("{name} {}", digits(median(figures))));
            let ratio = row.ratio().map(|ratio| format!("{ratio:.2} ×"));
            let met = row.is_met().map_or("", |met| if met { "met" } else { "missed" });
            let Row { work, figure, goal, .. } = row;
            let (ours, beside, ratio) =
                (digits(row.ours()), beside.unwrap_or_default(), ratio.unwrap_or_default());
            writeln!(f, "| {work} | {figure} | {ours} | {beside} | {ratio} | {goal} | {met} |")?;
        }
        Ok(())
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Three that mean something.
fn digits(figure: f64) -> String {
    match figure {
        0.0..1.0 => format!("{figure:.3}"),
        1.0..10.0 => format!("{figure:.2}"),
        10.0..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}
